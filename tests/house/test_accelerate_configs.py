import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils.launch import prepare_multi_gpu_env

CONFIGS = Path(__file__).parents[2] / "configs" / "accelerate"


def launch_args(name, *flags):
    argv = ["--config_file", str(CONFIGS / f"{name}.yaml"), *flags, "scripts/train.py"]
    return _validate_launch_command(launch_command_parser().parse_args(argv))[0]


@pytest.mark.parametrize(
    ("name", "machines", "processes"),
    [("one_gpu", 1, 1), ("three_gpus", 1, 3), ("eight_gpus", 1, 8), ("two_nodes", 2, 16), ("cpu", 1, 1)],
)
def test_accelerate_reads_the_config(name, machines, processes):
    config = load_config_from_file(str(CONFIGS / f"{name}.yaml"))
    assert (config.num_machines, config.num_processes) == (machines, processes)
    assert config.mixed_precision == ("no" if name == "cpu" else "bf16")
    assert config.use_cpu == (name == "cpu")


def test_there_is_no_config_without_a_test():
    assert sorted(path.stem for path in CONFIGS.glob("*.yaml")) == [
        "cpu",
        "eight_gpus",
        "one_gpu",
        "three_gpus",
        "two_nodes",
    ]


def test_each_config_says_how_it_is_launched():
    for path in CONFIGS.glob("*.yaml"):
        assert f"--config_file configs/accelerate/{path.name}" in path.read_text()
        assert yaml.safe_load(path.read_text())["compute_environment"] == "LOCAL_MACHINE"


def test_eight_gpus_start_eight_processes_on_a_free_port():
    args = launch_args("eight_gpus")
    assert args.multi_gpu
    prepare_multi_gpu_env(args)
    assert int(args.nproc_per_node) == 8
    assert int(args.master_port) > 0


def test_two_nodes_start_eight_processes_on_each():
    args = launch_args("two_nodes", "--machine_rank", "1", "--main_process_ip", "10.0.0.1")
    prepare_multi_gpu_env(args)
    assert (int(args.nproc_per_node), int(args.nnodes), int(args.node_rank)) == (8, 2, 1)
    assert args.rdzv_endpoint == "10.0.0.1:29500"


def test_the_cpu_config_launches_one_process_on_the_cpu(tmp_path):
    script = tmp_path / "who.py"
    script.write_text(
        "from accelerate import PartialState\ns = PartialState()\nprint('runs', s.num_processes, s.device)\n"
    )
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", CONFIGS / "cpu.yaml", script]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert "runs 1 cpu" in done.stdout, done.stderr
