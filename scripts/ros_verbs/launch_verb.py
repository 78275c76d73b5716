"""`ros2 launch` for a ROS 2 that ships launch_ros but not ros2launch: same syntax, main options."""

from __future__ import annotations

import os
from pathlib import Path

from ament_index_python.packages import PackageNotFoundError, get_package_share_directory
from launch import LaunchContext, LaunchDescription, LaunchIntrospector, LaunchService
from launch.actions import IncludeLaunchDescription
from launch.launch_description_sources import AnyLaunchDescriptionSource
from ros2cli.command import CommandExtension
from ros2pkg.api import package_name_completer


def find_launch_file(package: str, name: str) -> str:
    """Path of the launch file `name` anywhere below the share folder of `package`."""
    share = get_package_share_directory(package)
    hits = sorted(p for p in Path(share).rglob(name) if p.is_file())
    if not hits:
        raise RuntimeError(
            f"file '{name}' was not found in the share directory of package '{package}' which is at '{share}'"
        )
    return str(hits[0])


def show_arguments(description: LaunchDescription) -> None:
    """Print every declared launch argument with its description and default."""
    print("Arguments (pass arguments as '<name>:=<value>'):")
    for action in description.get_launch_arguments():
        print(f"\n    '{action.name}':\n        {action.description}")
        if action.choices:
            print(f"        (one of: {', '.join(repr(c) for c in action.choices)})")
        if action.default_value is not None:
            default = "".join(s.text if hasattr(s, "text") else s.describe() for s in action.default_value)
            print(f"        (default: '{default}')")


class LaunchCommand(CommandExtension):
    """Run a launch file."""

    def add_arguments(self, parser, cli_name):
        """Declare the command line, as ros2launch does."""
        name = parser.add_argument("package_name", help="name of the package, or path to a launch file")
        name.completer = package_name_completer
        parser.add_argument("launch_file_name", nargs="?", help="name of the launch file")
        parser.add_argument("launch_arguments", nargs="*", help="arguments as '<name>:=<value>'")
        parser.add_argument(
            "-s", "--show-args", "--show-arguments", action="store_true", help="show the file's launch arguments"
        )
        parser.add_argument("-p", "--print", "--print-description", dest="print_description", action="store_true")
        parser.add_argument("-n", "--noninteractive", action="store_true", help="run without a terminal")
        parser.add_argument("-d", "--debug", action="store_true", help="verbose launch")
        parser.add_argument("-a", "--show-all-subprocesses-output", action="store_true")

    def main(self, *, parser, args):
        """Find the launch file and run it until it ends; returns the exit code or one line of error."""
        rest = list(args.launch_arguments)
        if os.path.isfile(args.package_name) and (args.launch_file_name is None or ":=" in args.launch_file_name):
            path = args.package_name
            rest = ([args.launch_file_name] if args.launch_file_name else []) + rest
        elif args.launch_file_name is None:
            return "launch file name is missing"
        else:
            try:
                path = find_launch_file(args.package_name, args.launch_file_name)
            except (PackageNotFoundError, RuntimeError) as error:
                return str(error)
        for argument in rest:
            if ":=" not in argument:
                return f"malformed launch argument '{argument}', expected format '<name>:=<value>'"
        source = AnyLaunchDescriptionSource(path)
        if args.show_args or args.print_description:
            description = source.get_launch_description(LaunchContext(argv=rest))
            if args.print_description:
                print(LaunchIntrospector().format_launch_description(description))
            else:
                show_arguments(description)
            return 0
        if args.show_all_subprocesses_output:
            os.environ["OVERRIDE_LAUNCH_PROCESS_OUTPUT"] = "both"
        include = IncludeLaunchDescription(source, launch_arguments=[tuple(a.split(":=", 1)) for a in rest])
        service = LaunchService(argv=rest, noninteractive=args.noninteractive, debug=args.debug)
        service.include_launch_description(LaunchDescription([include]))
        return service.run()
