"""The configurations say what their names say, to Accelerate's own reader, and the table names each of them."""

from __future__ import annotations

import pytest
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import launch_command_parser
from accelerate.utils import DistributedType
from example_runs import EXAMPLES

CONFIGS = {
    "single": (DistributedType.NO, 1, 1),
    "ddp": (DistributedType.MULTI_GPU, 1, 2),
    "multi_node": (DistributedType.MULTI_GPU, 2, 2),
    "fsdp2": (DistributedType.FSDP, 1, 2),
    "deepspeed_zero2": (DistributedType.DEEPSPEED, 1, 2),
    "deepspeed_zero3": (DistributedType.DEEPSPEED, 1, 2),
}


def test_each_configuration_is_known():
    assert {path.stem for path in (EXAMPLES / "accelerate_configs").glob("*.yaml")} == CONFIGS.keys()


@pytest.mark.parametrize("name", CONFIGS)
def test_accelerate_reads_the_configuration(name):
    config = load_config_from_file(str(EXAMPLES / "accelerate_configs" / f"{name}.yaml"))
    assert (config.distributed_type, config.num_machines, config.num_processes) == CONFIGS[name]
    if config.distributed_type == DistributedType.FSDP:
        options, prefix = config.fsdp_config, "fsdp_"
        assert options["fsdp_version"] == 2
    else:
        options, prefix = config.deepspeed_config, ""
    # An option that `accelerate launch` does not know would be left aside without a word.
    known = {action.dest for action in launch_command_parser()._actions}
    assert {option if option.startswith(prefix) else prefix + option for option in options} <= known
    if name.startswith("deepspeed"):
        assert options["zero_stage"] == int(name[-1])


@pytest.mark.parametrize("name", CONFIGS)
def test_the_table_says_whether_the_configuration_was_run(name):
    (line,) = [
        line for line in (EXAMPLES / "README.md").read_text().splitlines() if line.startswith(f"| `{name}.yaml`")
    ]
    assert ("| run" in line) != ("| not run" in line)
