from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from periflow_ray.plan import rewrite_paths, rewritten_mounts

MOUNTS = ("/workspace", "/workspace/ckpt", "/workspace/data")

REWRITTEN = [
    ("cd /workspace/cifar && ls", "cd /box/workspace/cifar && ls"),
    ("/workspace/run.sh", "/box/workspace/run.sh"),
    ("ls /workspace", "ls /box/workspace"),
    ("ls /workspace/", "ls /box/workspace/"),
    ("main.py --save=/workspace/ckpt", "main.py --save=/box/workspace/ckpt"),
    ("main.py --save '/workspace/ckpt'", "main.py --save '/box/workspace/ckpt'"),
    ('main.py --save="/workspace/my runs"', 'main.py --save="/box/workspace/my runs"'),
    ("A=/workspace/x:/workspace/y", "A=/box/workspace/x:/box/workspace/y"),
    ("export PYTHONPATH=$PYTHONPATH:/workspace", "export PYTHONPATH=$PYTHONPATH:/box/workspace"),
    ("gcc -I/workspace/include -L'/workspace/lib'", "gcc -I/box/workspace/include -L'/box/workspace/lib'"),
    ("python a.py \\\n/workspace\\\n", "python a.py \\\n/box/workspace\\\n"),
    ("(cd /workspace; ls)", "(cd /box/workspace; ls)"),
    ("echo $(ls /workspace)", "echo $(ls /box/workspace)"),
    ("python a.py >/workspace/log 2>&1 </workspace/in", "python a.py >/box/workspace/log 2>&1 </box/workspace/in"),
    ("D=${DATA:-/workspace/data}", "D=${DATA:-/box/workspace/data}"),
    ("cp {/workspace/a,/workspace/b} .", "cp {/box/workspace/a,/box/workspace/b} ."),
    ('\'{"path":"/workspace/x","dirs":["/workspace"]}\'', '\'{"path":"/box/workspace/x","dirs":["/box/workspace"]}\''),
    ('sh -c "cat \\"/workspace/x\\""', 'sh -c "cat \\"/box/workspace/x\\""'),
    ("--init-method file:///workspace/shared", "--init-method file:///box/workspace/shared"),
    ("PYTHONPATH=src:/workspace/lib python a.py", "PYTHONPATH=src:/box/workspace/lib python a.py"),
    ("java -cp ./lib:/workspace/lib A", "java -cp ./lib:/box/workspace/lib A"),
    ("java -cp $CP:/workspace/lib A", "java -cp $CP:/box/workspace/lib A"),
    ("lib:/workspace/lib", "lib:/box/workspace/lib"),
    ("main.py +a={path:/workspace/x,b:/workspace}", "main.py +a={path:/box/workspace/x,b:/box/workspace}"),
    ("curl -F file=@/workspace/x -d @/workspace/y", "curl -F file=@/box/workspace/x -d @/box/workspace/y"),
    # The folder of this machine, and not what it is called in the container.
    ("docker run -v /workspace/data:/workspace/data:ro i", "docker run -v /box/workspace/data:/workspace/data:ro i"),
    ('podman run --volume="/workspace:/workspace" i', 'podman run --volume="/box/workspace:/workspace" i'),
    (
        "apptainer exec -B /workspace:/workspace,/workspace/data:/data i",
        "apptainer exec -B /box/workspace:/workspace,/box/workspace/data:/data i",
    ),
    (
        "docker run --mount type=bind,src=/workspace,dst=/workspace i",
        "docker run --mount type=bind,src=/box/workspace,dst=/workspace i",
    ),
    ("rsync -a /workspace/ckpt host:/workspace/ckpt", "rsync -a /box/workspace/ckpt host:/workspace/ckpt"),
    ('export PYTHONPATH="src:/workspace/lib"', 'export PYTHONPATH="src:/box/workspace/lib"'),
    ("main.py --path src:/workspace/lib", "main.py --path src:/box/workspace/lib"),
    # Soon read, whatever comes before.
    ("A=--x=y=z " * 50 + "main.py --o=/workspace/x", "A=--x=y=z " * 50 + "main.py --o=/box/workspace/x"),
    (
        "cd /workspace; scp $MASTER_ADDR:/workspace/a /workspace/a",
        "cd /box/workspace; scp $MASTER_ADDR:/workspace/a /box/workspace/a",
    ),
    ("scp a h:/b; export P=$P:/workspace", "scp a h:/b; export P=$P:/box/workspace"),
    ("--storage sqlite:////workspace/study.db", "--storage sqlite:////box/workspace/study.db"),
]

LEFT_ALONE = [
    "ls /workspace2 /workspace-old /workspace.bak /workspace_x /workspace~",
    "ls /workspace* /workspace$N /workspace${N} /workspace\\ old /workspace{1,2}",
    "ls $HOME/workspace ${X}/workspace ~/workspace $(pwd)/workspace `pwd`/workspace",
    'ls "$HOME"/workspace "${X}/workspace"',
    "ls ./workspace ../workspace foo/workspace /foo/workspace workspace",
    "aws s3 cp s3://bucket/workspace/x abfs://c@a/workspace",
    "curl https://host/workspace//workspace",
    "echo foo-I/workspace",
    "scp host:/workspace/x . && scp 'user@host:/workspace/x y' .",
    "rsync -e 'ssh -p 22' -a ${USER}@$HOST:/workspace/ckpt [fe80::1]:/workspace .",
    "A=1 /usr/bin/rsync -a ${HOST}:/workspace/x .",
    "mount -t nfs filer.example.org:/workspace /mnt",
]


@pytest.mark.parametrize(("text", "expected"), REWRITTEN)
def test_declared_paths_move_into_the_sandbox(text: str, expected: str) -> None:
    assert rewrite_paths(text, MOUNTS, "/box") == expected


@pytest.mark.parametrize("text", LEFT_ALONE)
def test_other_paths_stay(text: str) -> None:
    assert rewrite_paths(text, MOUNTS, "/box") == text
    assert rewritten_mounts(text, MOUNTS) == ()


def test_trailing_slashes_of_mounts_and_sandbox_make_no_difference() -> None:
    assert rewrite_paths("ls /data/x", ["/data/"], "/box/") == "ls /box/data/x"


def test_what_was_rewritten_can_be_told() -> None:
    command = "cd /workspace/cifar && main.py --save /workspace/ckpt --data /workspace/data/x --load /workspace/ckpt"
    assert rewritten_mounts(command, MOUNTS) == ("/workspace", "/workspace/ckpt", "/workspace/data")


def test_mount_paths_are_text_and_not_patterns() -> None:
    assert rewrite_paths("ls /a+b/x /aab/x", ["/a+b"], r"/box\1") == r"ls /box\1/a+b/x /aab/x"


def test_without_mounts_nothing_is_rewritten() -> None:
    assert rewrite_paths("ls /workspace", [], "/box") == "ls /workspace"


WORDS = st.text(alphabet="ab/.-_=:$ {}'\"~(\\\n", max_size=12)
PATHS = ("/workspace", "/workspace/data", "/workspace/ckpt", "/data", "/a", "/a/b")
MOUNT_PATHS = st.lists(
    st.sampled_from(["/workspace", "/workspace/data", "/workspace/ckpt", "/data", "/a", "/a/b"]),
    min_size=1,
    unique=True,
)
SHELL_TEXTS = st.lists(
    st.one_of(WORDS, st.sampled_from([*PATHS, " ", "--x="])),
    max_size=12,
).map("".join)


@given(text=SHELL_TEXTS, mounts=MOUNT_PATHS)
def test_taking_the_sandbox_out_again_gives_the_text_back(text: str, mounts: list[str]) -> None:
    assert rewrite_paths(text, mounts, "/SANDBOX").replace("/SANDBOX", "") == text


@given(text=SHELL_TEXTS, mounts=MOUNT_PATHS)
def test_rewriting_twice_is_rewriting_once(text: str, mounts: list[str]) -> None:
    once = rewrite_paths(text, mounts, "/SANDBOX")
    assert rewrite_paths(once, mounts, "/SANDBOX") == once


@given(text=SHELL_TEXTS, mounts=MOUNT_PATHS)
def test_a_text_changes_exactly_when_something_is_said_to_be_rewritten(text: str, mounts: list[str]) -> None:
    assert (rewrite_paths(text, mounts, "/SANDBOX") != text) == bool(rewritten_mounts(text, mounts))


@given(
    before=st.sampled_from(["", " ", "=", ":", '"', "'", "(", "--save=", "-I"]),
    mount=st.sampled_from(["/workspace", "/data"]),
    after=st.sampled_from(["", "/", "/x.py", " ", '"', "'", ":", ";", ")", "\n"]),
)
def test_a_whole_path_between_boundaries_always_moves(before: str, mount: str, after: str) -> None:
    assert rewrite_paths(before + mount + after, ["/workspace", "/data"], "/S") == f"{before}/S{mount}{after}"


@given(
    before=st.sampled_from(["a", "}", ")", "~", ".", "/", "$HOME", "s3://bucket"]),
    after=st.sampled_from(["", "/x", " "]),
)
def test_the_tail_of_another_path_never_moves(before: str, after: str) -> None:
    assert rewrite_paths(f"ls {before}/workspace{after}", ["/workspace"], "/S") == f"ls {before}/workspace{after}"


@given(after=st.sampled_from(["2", "-old", ".bak", "_x", "~", "*", "$X", "%", "@", "+"]))
def test_the_start_of_a_longer_name_never_moves(after: str) -> None:
    assert rewrite_paths(f"ls /workspace{after}", ["/workspace"], "/S") == f"ls /workspace{after}"
