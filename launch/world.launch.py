"""Start a world: a robot with a camera in a place that was filmed once.

    ros2 launch inspatio world.launch.py video:=clip.mp4
    ros2 launch inspatio world.launch.py generator:=star prompt:="a kitchen, morning light"
    ros2 launch inspatio world.launch.py --show-args
"""

import os
import re
import shutil
import tempfile
from pathlib import Path

from launch import LaunchDescription
from launch.actions import DeclareLaunchArgument, OpaqueFunction, RegisterEventHandler, Shutdown
from launch.event_handlers import OnProcessExit
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterValue

from inspatio_core import assets

SHARE = Path(__file__).resolve().parent.parent

ARGUMENTS = [
    # name, type, default, description
    ("video", str, "", "video file, folder of images or one image to drive through; empty: the scene"),
    ("scene", str, "", "scene folder or name of a shipped scene; empty with no video: courtyard"),
    ("generator", str, "geometric", "what turns geometry into frames: geometric, or star, the diffusion transformer"),
    ("checkpoint_path", str, "", "weights of star, a file or a model's folder; empty: where they belong"),
    ("model", str, "auto", "size of star: 1.3b, 14b, tiny or a JSON file of its fields; auto: what the weights are of"),
    ("codec", str, "auto", "autoencoder of star: auto, wan, tae; auto: what the model was made with"),
    ("tae_checkpoint_path", str, "", "weights of the tae codec; empty: where they belong"),
    ("prompt", str, "", "what the video shows, for models that read text; empty: the reference's caption"),
    ("random_weights", bool, "false", "make the weights up instead of reading any: noise, for tests and measurements"),
    ("latents_per_block", int, "0", "latent frames of a block, 4 frames each; 0: the generator's own"),
    ("compile", bool, "false", "compile the network before the first frame"),
    ("fp8", bool, "false", "large products of the network in 8 bits, on GPUs that can"),
    ("device", str, "auto", "auto, cpu or cuda:N"),
    ("dtype", str, "auto", "number format of the network: auto (bfloat16 on CUDA), float32, float16, bfloat16"),
    ("size", str, "auto", "HEIGHTxWIDTH, such as 480x832; auto: 480x832, or 832x480 for an upright video"),
    ("fps", float, "24.0", "frames per second of sim time"),
    ("seed", int, "0", "seed of the generator"),
    ("pacing", str, "lockstep", "when generation is slow: lockstep (sim time slows) or realtime (frames are dropped)"),
    ("planar", bool, "false", "ignore z, roll and pitch of cmd_vel, as a ground robot does"),
    ("metres_per_unit", float, "0.0", "scale of references without metric depth; 0: their median depth is 3 m"),
    ("relative_to_source", bool, "false", "let the camera ride on the source camera"),
    ("memory", bool, "true", "let the point map feed back into frames"),
    ("map_limit", int, "500000", "most points of the map"),
    ("loop", str, "bounce", "what the playhead does at the ends: loop, bounce, hold"),
    ("stamped", bool, "false", "cmd_vel is TwistStamped instead of Twist"),
    ("frame_prefix", str, "", "put before every frame name as it is, such as left/"),
    ("world_frame", str, "auto", "static parent of map that joins worlds; auto: 'world' if there is a frame_prefix"),
    ("publish_clock", bool, "true", "publish /clock; false for all but one world of a graph, which then follow it"),
]  # fmt: skip

OTHER_ARGUMENTS = [
    ("namespace", "", "namespace of the node and its topics"),
    ("params_file", "", "parameter file such as config/world.yaml; arguments given here win over it"),
    ("use_sim_time", "auto", "whether the node's clock follows /clock; auto: the parameter file, else publish_clock"),
    ("rviz", "false", "also start rviz2 with the shipped configuration"),
    ("log_level", "info", "debug, info, warn, error, fatal"),
]

WORDS = {"true": True, "1": True, "yes": True, "on": True, "false": False, "0": False, "no": False, "off": False}
LOG_LEVELS = ("debug", "info", "warn", "error", "fatal")


def transport(environment):
    """Environment that lets images leave fast; nothing that the user has set is touched.

    Fast DDS gets a shared-memory segment that holds many images; malloc keeps large blocks instead of mapping and
    faulting each anew.
    """
    out = {
        "MALLOC_MMAP_THRESHOLD_": "1073741824",
        "MALLOC_TRIM_THRESHOLD_": "2147483647",
        "MALLOC_TOP_PAD_": "67108864",
        "MALLOC_ARENA_MAX": "1",
    }
    ours = environment.get("RMW_IMPLEMENTATION", "") in ("", "rmw_fastrtps_cpp")
    chosen = ("FASTRTPS_DEFAULT_PROFILES_FILE", "FASTDDS_DEFAULT_PROFILES_FILE", "FASTDDS_BUILTIN_TRANSPORTS")
    if ours and not any(environment.get(name) for name in chosen):
        profile = SHARE / "config/fastdds/shared_memory.xml"
        try:
            free = shutil.disk_usage("/dev/shm").free
        except OSError:
            free = 0
        text = profile.read_text()
        wanted = int(re.search(r"<segment_size>(\d+)", text)[1])
        if free >= 2 * wanted:
            out["FASTRTPS_DEFAULT_PROFILES_FILE"] = str(profile)
        elif free >= 16 << 20:
            megabytes = free // 2 >> 20
            try:
                small = kept(f"shared_memory_{megabytes}mb.xml", text.replace(str(wanted), str(megabytes << 20)))
                out["FASTRTPS_DEFAULT_PROFILES_FILE"] = str(small)
            except OSError:
                pass  # nowhere to write: Fast DDS's own segment
    return {name: value for name, value in out.items() if not environment.get(name)}


def kept(name, text):
    """Path of a file with this text in the user's cache."""
    path = assets.cache_dir() / "fastdds" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False) as file:
        file.write(text)
    os.replace(file.name, path)
    return path


def typed(name, kind, text):
    """The value of an argument; ValueError with one line that names it."""
    if kind is bool:
        if text.lower() in WORDS:
            return WORDS[text.lower()]
        raise ValueError(f"{name}: '{text}' is neither true nor false")
    try:
        return kind(text)
    except ValueError:
        wanted = {int: "a whole number", float: "a number"}[kind]
        raise ValueError(f"{name}: '{text}' is not {wanted}") from None


def remember(context, given):
    """Note which arguments have a value before defaults are filled in: those alone win over the parameter file."""
    given.update(context.launch_configurations)


def world(context, given):
    """The node, with the arguments that were given over the parameter file."""
    values = {
        name: typed(name, kind, LaunchConfiguration(name).perform(context))
        for name, kind in [*((a[0], a[1]) for a in ARGUMENTS), *((a[0], str) for a in OTHER_ARGUMENTS)]
    }
    chosen = {name: ParameterValue(values[name], value_type=kind) for name, kind, *_ in ARGUMENTS if name in given}
    if values["use_sim_time"] != "auto":
        chosen["use_sim_time"] = typed("use_sim_time", bool, values["use_sim_time"])
    with_rviz = typed("rviz", bool, values["rviz"])
    file = values["params_file"]
    if file and not Path(file).is_file():
        raise ValueError(f"params_file: {file}: no such file")
    if values["log_level"].lower() not in LOG_LEVELS:
        raise ValueError(f"log_level: '{values['log_level']}' is not one of {', '.join(LOG_LEVELS)}")
    node = Node(
        package="inspatio_ros",
        executable="world_node",
        name="world",
        namespace=values["namespace"],
        parameters=[*([file] if file else []), *([chosen] if chosen else [])],
        ros_arguments=["--log-level", values["log_level"]],
        additional_env=transport(os.environ),
        output="screen",
        emulate_tty=False,
        # launch leaves SIGINT to the terminal; sent to launch alone, the node would hear of it only after this time.
        sigterm_timeout="1",
        sigkill_timeout="4",
    )
    actions = [node, RegisterEventHandler(OnProcessExit(target_action=node, on_exit=ended))]
    if with_rviz:
        rviz = Node(
            package="rviz2",
            executable="rviz2",
            namespace=values["namespace"],
            arguments=["-d", str(SHARE / "rviz/world.rviz"), "-f", values["frame_prefix"] + "map"],
            parameters=[{"use_sim_time": True}],
            output="log",
        )
        actions.append(rviz)
    return actions


def ended(event, context):
    """The world has ended, so the launch ends; with a non-zero exit code if the world had one."""
    if event.returncode and not context.is_shutdown:
        raise RuntimeError(f"{event.process_name} ended with exit code {event.returncode}, see its last line above")
    return [Shutdown(reason="the world has ended")]


def generate_launch_description():
    """All arguments, then the node."""
    declared = [
        DeclareLaunchArgument(name, default_value=default, description=description)
        for name, *_, default, description in [*ARGUMENTS, *OTHER_ARGUMENTS]
    ]
    given = set()
    return LaunchDescription([
        OpaqueFunction(function=remember, args=[given]),
        *declared,
        OpaqueFunction(function=world, args=[given]),
    ])  # fmt: skip
