from __future__ import annotations

import pickle
import signal

import pytest
from failing_output import KILLED_HINT, MODULE_HINT, describe, hint_of, raised

from periflow_ray.runtime.diagnosis import Failure, describe_exit

MEMORY_HINT = (
    "the machine's memory is full. Lower the batch size or the number of data loader workers, or use a VM with more "
    "memory."
)
GPU_MEMORY_HINT = (
    "the GPU's memory is full. Lower the batch size, accumulate gradients, or use a VM with more GPU memory "
    "(periflow-ray vm list)."
)
PORT_HINT = "a port is in use on the node. Use $MASTER_PORT, which is free, instead of a fixed --master_port."
NUM_GPUS_HINT = "the script asks for more GPUs than the node has. Use --nproc_per_node $NPROC_PER_NODE and LOCAL_RANK."
FILE_HINT = "'{0}' is not there. A workspace given with -d DIR appears as <mount_path>/<name of DIR>."
INIT_HINT = (
    "the script uses the SDK without opening it. Call pf.init(total_train_steps=...) once in every process, before "
    "pf.train_step, pf.metric and pf.upload_checkpoint."
)
LOST_PEER_HINT = (
    "another rank was lost first; look at the other nodes' lines: periflow-ray job log N --show-machine-id."
)


def test_an_error_without_a_known_cause_shows_the_last_lines_and_guesses_nothing():
    text = "epoch 1\n\n" + raised("ValueError: the loss is not finite")
    assert describe(text) == (
        "node 0: it ended with exit code 1.\n"
        "Last lines:\n"
        "  epoch 1\n"
        "  Traceback (most recent call last):\n"
        '    File "main.py", line 1, in f\n'
        "      main()\n"
        '    File "main.py", line 2, in f\n'
        "      loss.backward()\n"
        "  ValueError: the loss is not finite"
    )


def test_a_command_that_says_nothing_leaves_its_exit_code():
    assert describe("", exit_code=3) == "node 0: it ended with exit code 3."


def test_the_last_twenty_lines_are_shown():
    text = "\n".join(f"line {number}" for number in range(100))
    shown = "\n".join(f"  line {number}" for number in range(80, 100))
    assert describe(text, exit_code=2) == f"node 0: it ended with exit code 2.\nLast lines:\n{shown}"


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        (
            raised(
                "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total capacity "
                "of 15.77 GiB of which 10.12 MiB is free."
            ),
            GPU_MEMORY_HINT,
        ),
        (raised("RuntimeError: CUDA out of memory. Tried to allocate 2.00 GiB"), GPU_MEMORY_HINT),
        (raised("MemoryError"), MEMORY_HINT),
        (
            raised(
                "RuntimeError: [enforce fail at alloc_cpu.cpp:121] err == 0. DefaultCPUAllocator: can't allocate "
                "memory: you tried to allocate 400000000000 bytes. Error code 12 (Cannot allocate memory)"
            ),
            MEMORY_HINT,
        ),
        ("terminate called after throwing an instance of 'std::bad_alloc'\n  what():  std::bad_alloc", MEMORY_HINT),
        ("bash: fork: Cannot allocate memory", MEMORY_HINT),
        (raised("ModuleNotFoundError: No module named 'torchmetrics'"), MODULE_HINT.format("torchmetrics")),
        (raised("ModuleNotFoundError: No module named 'a.b'; 'a' is not a package"), MODULE_HINT.format("a.b")),
        ("/usr/bin/python: No module named torch.distributed.run", MODULE_HINT.format("torch.distributed.run")),
        (
            raised(
                "torch.distributed.DistNetworkError: The server socket has failed to listen on any local network "
                "address. port: 29500, useIpv6: false, code: -98, name: EADDRINUSE, message: address already in use"
            ),
            PORT_HINT,
        ),
        (raised("OSError: [Errno 98] Address already in use"), PORT_HINT),
        (raised("torch.AcceleratorError: CUDA error: invalid device ordinal"), NUM_GPUS_HINT),
        (
            raised(
                "lightning.fabric.utilities.exceptions.MisconfigurationException: You requested gpu: [0, 1, 2, 3]\n"
                " But your machine only has: [0]"
            ),
            NUM_GPUS_HINT,
        ),
        (
            raised(
                "periflow_ray.errors.PeriFlowError: metric() was called before init(). Call init(total_train_steps) "
                "once, before every other SDK function, in every process that trains."
            ),
            INIT_HINT,
        ),
        (
            raised(
                "periflow_ray.errors.PeriFlowError: total_train_steps is 40, but this job resumes at step 40: nothing "
                "is left to train."
            ),
            "the training is complete: there is no step left to run.",
        ),
        (raised("OSError: [Errno 28] No space left on device"), "the node's disk is full."),
        *(
            (
                raised(f"RuntimeError: {text}"),
                "the node's shared memory (/dev/shm) is full: data loader workers hand their batches over in it. Use "
                "fewer workers (num_workers), or give the machine's container more of it (docker run --shm-size 8g).",
            )
            for text in (
                "DataLoader worker (pid 7) is killed by signal: Bus error. It is possible that dataloader's workers "
                "are out of shared memory. Please try to raise your shared memory limit.",
                "unable to write to file </torch_7_1>: No space left on device (28)",
                "unable to allocate shared memory(shm) for file </torch_7_1>: No space left on device (28)",
                "NCCL error: Error while creating shared memory segment /dev/shm/nccl-AbC (size 9637888)",
            )
        ),
        (
            raised("OSError: [Errno 24] Too many open files: '/data/1.npy'"),
            "a process may not open so many files. Raise the limit at the beginning of the command: ulimit -n 65536.",
        ),
        (
            raised("RuntimeError: The NVIDIA driver on your system is too old (found version 12020)."),
            "torch is built for a later CUDA than the node's driver knows. Ask for a torch of an earlier one in "
            "job_setting.python or another image, or use machines with a newer driver.",
        ),
        (
            raised("torch.AcceleratorError: CUDA error: no kernel image is available for execution on the device"),
            "torch is not built for GPUs of this kind. Use a version that is, in job_setting.python or another image.",
        ),
        (
            raised("RuntimeError: Found no NVIDIA driver on your system."),
            "the script needs a GPU, but there is none here. On a laptop choose the device with "
            "torch.cuda.is_available().",
        ),
        (
            "python: can't open file '/workspace/main.py': [Errno 2] No such file or directory",
            FILE_HINT.format("/workspace/main.py"),
        ),
        ("bash: /workspace/train.py: No such file or directory", None),
        (raised("RuntimeError: [pair.cc:553] Connection closed by peer [10.0.0.2]:40625"), LOST_PEER_HINT),
        (raised("KeyError: 'state_dict'"), None),
    ],
)
def test_a_known_cause_gets_a_hint(text, hint):
    assert hint_of(describe("epoch 1\n" + text)) == hint


def test_a_missing_program_is_named_when_it_ended_the_command():
    line = "bash: line 1: torchrun: command not found"
    assert describe(line, exit_code=127) == (
        "node 0: it ended with exit code 127.\n"
        "Hint: the program 'torchrun' is not installed on the node.\n"
        "Last lines:\n"
        f"  {line}"
    )
    assert hint_of(describe(line, exit_code=127, image_name="team/image:1")) == (
        "the program 'torchrun' is not installed in the image team/image:1."
    )


def test_a_missing_program_that_the_command_went_on_without_is_not_the_cause():
    assert hint_of(describe("bash: line 1: nvidia-smi: command not found\nfatal: no data", exit_code=2)) is None


WARNINGS = [
    "UserWarning: No module named 'apex', falling back to torch.optim",
    "bash: Address already in use, trying the next port",
    "RuntimeError: CUDA out of memory (caught, batch size is halved)",
    "rm: cannot remove 'x.py': No such file or directory",
]


@pytest.mark.parametrize("warning", WARNINGS)
def test_a_harmless_line_long_before_the_end_is_not_the_cause(warning):
    steps = "\n".join(f"step {number}" for number in range(200))
    assert hint_of(describe(f"{warning}\n{steps}\n{raised('ValueError: bad label')}")) is None
    assert hint_of(describe(f"{warning}\n{steps}\nfatal: bad label")) is None


@pytest.mark.parametrize("warning", WARNINGS)
def test_a_harmless_line_just_before_a_traceback_is_not_the_cause(warning):
    assert hint_of(describe(f"{warning}\n{raised('ValueError: bad label')}")) is None


@pytest.mark.parametrize("warning", WARNINGS)
def test_the_last_error_wins_over_a_harmless_line(warning):
    text = f"{warning}\n{raised('OSError: [Errno 28] No space left on device')}"
    assert hint_of(describe(text)) == "the node's disk is full."


def test_a_traceback_that_was_logged_and_survived_is_not_the_cause():
    steps = "\n".join(f"step {number}" for number in range(50))
    text = f"{raised('ModuleNotFoundError: No module named ' + repr('wandb'))}\n{steps}\nfatal: bad label"
    assert hint_of(describe(text)) is None


def test_the_source_lines_of_a_traceback_are_not_the_cause():
    frames = ("except MemoryError:", 'assert world_size != 3, "No module named x"')
    assert hint_of(describe(raised("AssertionError", *frames))) is None


def test_an_error_names_its_cause_through_a_chain_of_exceptions():
    cause = raised("ModuleNotFoundError: No module named 'sentencepiece'")
    for link in (
        "The above exception was the direct cause of the following exception:",
        "During handling of the above exception, another exception occurred:",
    ):
        text = f"{cause}\n\n{link}\n\n{raised('RuntimeError: cannot load the tokenizer')}"
        assert hint_of(describe(text)) == MODULE_HINT.format("sentencepiece")
        prefixed = "\n".join(f"[rank0]: {line}" for line in text.split("\n"))
        assert hint_of(describe(prefixed)) == MODULE_HINT.format("sentencepiece")


def test_the_last_exception_of_a_chain_wins_over_its_cause():
    text = (
        f"{raised('ModuleNotFoundError: No module named ' + repr('flash_attn'))}\n\n"
        "During handling of the above exception, another exception occurred:\n\n"
        f"{raised('torch.OutOfMemoryError: CUDA out of memory.')}"
    )
    assert hint_of(describe(text)) == GPU_MEMORY_HINT


def test_a_killed_command_is_said_to_be_out_of_memory_only_where_it_used_much():
    assert describe(
        "step 1", exit_code=None, signal_number=signal.SIGKILL, peak_memory_bytes=12 << 30, node_memory_bytes=16 << 30
    ) == (
        "node 0: it was killed by SIGKILL.\n"
        "Hint: the kernel probably ended it because the memory was full (its largest process used 12.0 GiB of "
        "16.0 GiB). Use less, or a larger VM.\n"
        "Last lines:\n"
        "  step 1"
    )
    assert describe("step 1", exit_code=137, peak_memory_bytes=1 << 30, node_memory_bytes=16 << 30) == (
        "node 0: it ended with exit code 137 (SIGKILL).\n"
        "Hint: somebody or something sent SIGKILL, often because the memory was full (its largest process used "
        "1.0 GiB of 16.0 GiB).\n"
        "Last lines:\n"
        "  step 1"
    )


def test_a_killed_command_had_no_time_to_print_its_cause():
    text = raised("ModuleNotFoundError: No module named 'wandb'")
    assert hint_of(describe(text, exit_code=None, signal_number=signal.SIGKILL)) == KILLED_HINT


@pytest.mark.parametrize(
    ("exit_code", "signal_number", "text"),
    [
        (1, None, "it ended with exit code 1"),
        (255, None, "it ended with exit code 255"),
        (139, None, "it ended with exit code 139 (SIGSEGV)"),
        (None, 15, "it was killed by SIGTERM"),
        (None, 63, "it was killed by signal 63"),
        (None, None, "the command was lost, because its keeper process was killed"),
    ],
)
def test_how_a_command_ended_is_said_in_words(exit_code, signal_number, text):
    assert describe_exit(exit_code, signal_number) == text


def test_a_failure_that_is_no_exit_has_its_own_summary_and_survives_the_way_to_the_driver():
    failure = Failure(1, 2.5, rank=3, summary="the last checkpoint could not be saved: disk full")
    assert pickle.loads(pickle.dumps(failure)) == failure
    assert failure.describe() == "node 1, rank 3: the last checkpoint could not be saved: disk full."


def test_a_diagnosis_is_bounded_however_long_the_lines_are():
    """The log has them whole."""
    failure = Failure(
        0, 0.0, exit_code=1, last_lines=("x" * 64_000,) * 20, summary="y" * 1_000_000, hint="z" * 1_000_000
    )
    assert len(failure.describe()) < 25_000
    assert failure.headline().startswith("node 0: yyy")
