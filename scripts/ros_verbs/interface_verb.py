"""`ros2 interface show|list|package` on the ament index, for a ROS 2 that ships no ros2interface."""

from __future__ import annotations

from pathlib import Path

from ament_index_python.packages import PackageNotFoundError, get_package_share_directory
from ament_index_python.resources import get_resource, get_resources
from ros2cli.command import CommandExtension

KINDS = ("msg", "srv", "action")


def interface_names(package: str) -> list[str]:
    """All interfaces of one package as 'package/kind/Name', sorted."""
    text, _ = get_resource("rosidl_interfaces", package)
    files = (line.rsplit(".", 1) for line in text.split())
    return sorted(f"{package}/{stem}" for stem, kind in files if kind in KINDS)


class InterfaceCommand(CommandExtension):
    """Show information about ROS interfaces."""

    def add_arguments(self, parser, cli_name):
        """Declare the command line."""
        parser.add_argument("verb", choices=["show", "list", "package"])
        parser.add_argument("name", nargs="?", help="package/kind/Name for show, a package for package")

    def main(self, *, parser, args):
        """Print what was asked for; returns the exit code or one line of error."""
        if args.verb == "list":
            for package in sorted(get_resources("rosidl_interfaces")):
                print("\n".join(interface_names(package)))
            return 0
        if not args.name:
            return f"ros2 interface {args.verb} needs a name"
        try:
            if args.verb == "package":
                print("\n".join(interface_names(args.name)))
                return 0
            package, kind, name = args.name.split("/")
            print((Path(get_package_share_directory(package)) / kind / f"{name}.{kind}").read_text().rstrip())
        except (PackageNotFoundError, LookupError, ValueError, OSError):
            return f"unknown interface or package '{args.name}'"
        return 0
