"""Requirement files of pip's, read with what they include and checked line by line."""

from __future__ import annotations

import pytest

from periflow_ray.spec.requirements import describe_bad_requirement, read_requirements


def read(files: dict[str, str]):
    def read_text(path: str) -> str:
        if path not in files:
            raise FileNotFoundError(2, "No such file or directory")
        return files[path]

    return read_requirements("requirements.txt", read_text)


def test_every_form_that_jobs_can_share_is_read() -> None:
    found = read(
        {
            "requirements.txt": """\
# what we need
numpy>=1.26  # for arrays
transformers[torch]==4.50 ; python_version < '3.13'
pandas==2.2.0 \\
    --hash=sha256:00 \\
    --hash=sha256:11
tool @ https://example.com/tool-1.0.zip
git+https://example.com/repository.git@v1#egg=repository
wheels/own-1.0-py3-none-any.whl
-r more/more.txt
--constraint=limits.txt
--extra-index-url https://example.com/simple
-f wheels
--no-index
""",
            "more/more.txt": "scipy\n-r other.txt\n",
            "more/other.txt": "tqdm\n",
            "limits.txt": "urllib3<2\n",
        }
    )
    assert found.problems == []
    assert found.names == [
        "numpy",
        "transformers",
        "pandas",
        "tool",
        "git+https://example.com/repository.git@v1#egg=repository",
        "wheels/own-1.0-py3-none-any.whl",
        "scipy",
        "tqdm",
    ]
    assert found.local_paths == ["wheels/own-1.0-py3-none-any.whl", "wheels"]
    assert found.lines[2] == "pandas==2.2.0     --hash=sha256:00     --hash=sha256:11"
    assert [line for line in found.lines if line.startswith("-")] == [
        "-r more/more.txt",
        "-r more/other.txt",
        "-c limits.txt",
        "--extra-index-url https://example.com/simple",
        "-f wheels",
        "--no-index",
    ]


def test_every_line_that_cannot_be_read_is_told() -> None:
    found = read(
        {
            "requirements.txt": """\
numpy=>1
--index-urll https://example.com
-r gone.txt
-r ../outside.txt
-e .
./package
--no-index now
-r
-r round.txt
""",
            "round.txt": "-r requirements.txt\n",
        }
    )
    first, *others = found.problems
    assert first.startswith("requirements.txt:1: 'numpy=>1' is no requirement such as 'numpy>=1.26': ")
    advice = "put 'pip install' of it into docker.command, which installs for this job alone"
    assert others == [
        "requirements.txt:2: unknown option '--index-urll'. Did you mean '--index-url'?",
        "requirements.txt:3: 'gone.txt' cannot be read: No such file or directory",
        "requirements.txt:4: '../outside.txt' is not a file of the workspace",
        f"requirements.txt:5: '-e .' is for one job alone; {advice}",
        f"requirements.txt:6: './package' is a directory, of which jobs cannot share an environment; {advice}",
        "requirements.txt:7: '--no-index' has no value",
        "requirements.txt:8: '-r' needs a value",
        "round.txt:1: 'requirements.txt' includes itself",
    ]


@pytest.mark.parametrize(
    "text",
    ["numpy", "numpy>=1.26,<3", "a[b,c]~=1.0", "a @ https://example.com/a.whl", "git+ssh://h/r.git", "x.whl"],
)
def test_what_pip_takes_is_taken(text: str) -> None:
    assert describe_bad_requirement(text) is None


@pytest.mark.parametrize("text", ["numpy >", "-r x", "a b", "../a", "~/a", "a/b", "=1"])
def test_what_no_shared_environment_can_have_is_refused(text: str) -> None:
    assert describe_bad_requirement(text)
