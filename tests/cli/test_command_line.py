"""What all commands share: examples in their help, errors of one line, completion."""

from __future__ import annotations

import argparse
import errno
import os
import shlex
import signal
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from adderize import adderize, cli, models, save_model
from adderize.cli import COMMANDS, main
from adderize.cli.messages import one_line_warnings
from adderize.errors import AdderizeError
from adderize.models import by_name

EXAMPLES = {
    name: list(__import__(f"adderize.cli.{name}", fromlist=["EXAMPLES"]).EXAMPLES)
    for name in COMMANDS
}
CHEAP = (
    "adderize plan resnet18",
    "adderize plan resnet18 --layers bnn",
    "adderize count resnet50 --depth 1 --energy int8",
    "adderize count --paper --format md",
    "adderize inspect resnet18 --stem",
    "adderize report resnet18 -o report.html",
    "adderize doctor",
    "adderize doctor --json",
)


@pytest.mark.parametrize("name", COMMANDS)
def test_help_has_examples_that_are_understood(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as leaving:
        main([name, "--help"])
    assert leaving.value.code == 0
    text = capsys.readouterr().out
    assert EXAMPLES[name]
    for line in EXAMPLES[name]:
        assert f"\n  {line}\n" in text
        program, *argv = shlex.split(line)
        cli._parser(argv).parse_args(argv)
        assert program == "adderize" and argv[0] == name


def test_a_network_whose_builder_has_arguments(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(0)
    folder, pixels = str(tmp_path / "saved"), str(tmp_path / "images.pt")
    save_model(adderize(models.resnet20(shortcut="A", logits_norm=False)), folder)
    torch.save(torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8), pixels)
    options = ["--arch", "resnet20", "--arch-options", "shortcut=A", "logits_norm=false"]
    to = ["-o", str(tmp_path / "result")]
    for command in (
        ["inspect", folder],
        ["count", folder],
        ["count", folder, "--multiplication-free"],
        ["report", folder, *to],
        ["quantize", folder, "--data", pixels, *to],
        ["export", folder, "--format", "onnx", *to],
    ):
        if command[0] == "quantize":
            (tmp_path / "result").unlink()
        assert main([*command, *options]) == 0, capsys.readouterr().err
        assert main([*command, *options[:2]]) == 1
        assert "do not belong to this model" in capsys.readouterr().err
    assert main(["plan", "resnet20", *options[2:]]) == 0
    assert "downsample" not in capsys.readouterr().out


def architectures() -> Iterator[str]:
    """Those that the examples name."""
    for words in (shlex.split(line) for lines in EXAMPLES.values() for line in lines):
        if "--arch" in words:
            yield words[words.index("--arch") + 1]
        elif (
            words[1] in ("plan", "count", "inspect", "report", "transfer") and "--" not in words[2]
        ):
            yield words[2]


def test_the_architectures_of_examples_exist() -> None:
    for name in set(architectures()):
        by_name.blank(name)


@pytest.mark.parametrize("line", CHEAP)
def test_cheap_examples_run(
    line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert line in [line for lines in EXAMPLES.values() for line in lines]
    monkeypatch.chdir(tmp_path)
    assert main(shlex.split(line)[1:]) == 0
    assert capsys.readouterr().out or (tmp_path / "report.html").is_file()


def raising(error: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(arguments: argparse.Namespace) -> int:
        raise error

    monkeypatch.setattr("adderize.cli.plan.run", run)


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (AdderizeError("two\n  lines"), 1, "adderize: two lines"),
        (RuntimeError("a\nb"), 70,
         "adderize: unexpected RuntimeError: a b (--debug shows the traceback)"),
        (OSError(errno.ENOSPC, "No space left"), 1,
         "adderize: cannot write the result: No space left"),
        (KeyError(), 70, "adderize: unexpected KeyError (--debug shows the traceback)"),
        (KeyboardInterrupt(), 130, "adderize: interrupted"),
    ],
)  # fmt: skip
def test_errors_are_one_line(
    error: BaseException,
    code: int,
    line: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    raising(error, monkeypatch)
    assert main(["plan", "resnet18"]) == code
    assert capsys.readouterr() == ("", line + "\n")


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
def test_an_interrupt_while_torch_is_imported_ends_the_command() -> None:
    """Torch swallows it while it imports NumPy, and the command would go on with half of that."""
    code = """if True:
        import os, signal, sys
        from adderize.cli import main

        class Interrupts:
            def find_spec(self, name, path, target=None):
                if name == "torch":
                    os.kill(os.getpid(), signal.SIGINT)

        # A shell's background jobs ignore the signal, and what they start does.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        sys.meta_path.insert(0, Interrupts())
        main(["plan", "resnet18"])
    """
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (result.returncode, result.stdout, result.stderr) == (-signal.SIGINT, "", "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux has /dev/full")
@pytest.mark.parametrize("end", ["return 0", "raise SystemExit(0)"])
def test_results_that_cannot_be_written(end: str) -> None:
    """The end of a command, and that of argparse behind `--help`."""
    code = f"""if True:
        import argparse, sys
        from adderize import cli

        def run(_):
            print("result")
            {end}

        parser = argparse.ArgumentParser()
        parser.set_defaults(run=run)
        cli._parser = lambda _: parser
        sys.exit(cli.main([]))
    """
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONUNBUFFERED"}
    reader, writer = os.pipe()
    os.close(reader)
    full = os.open("/dev/full", os.O_WRONLY)
    message = "adderize: cannot write the result: No space left on device\n"
    for output, expected in ((full, (1, message)), (writer, (0, ""))):
        result = subprocess.run(
            [sys.executable, "-c", code],
            stdout=output,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
        os.close(output)
        assert (result.returncode, result.stderr) == expected


@pytest.mark.parametrize("argv", [["--debug", "plan", "resnet18"], ["plan", "resnet18", "--debug"]])
def test_debug_shows_the_traceback(
    argv: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    raising(AdderizeError("wrong"), monkeypatch)
    assert main(argv) == 1
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("Traceback") and lines[-1] == "adderize: wrong"
    assert any("in run" in line for line in lines)
    raising(RuntimeError("worse"), monkeypatch)
    assert main(argv) == 70
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("Traceback") and "--debug" not in lines[-1]


def test_debug_behind_the_parts_of_bench() -> None:
    arguments = cli._parser(["bench"]).parse_args(["bench", "layers", "--debug"])
    assert arguments.debug and not cli._parser(["bench"]).parse_args(["bench", "layers"]).debug


def test_warnings_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    before = warnings.formatwarning
    with one_line_warnings():
        lines = [
            warnings.formatwarning("adderize: look\n  here", UserWarning, "file.py", 3),
            warnings.formatwarning("there", FutureWarning, "file.py", 3),
        ]
    assert lines == ["adderize: warning: look here\n", "adderize: warning: there\n"]
    assert warnings.formatwarning is before


def completions(line: str) -> set[str]:
    code = "import sys; from adderize.cli import main; sys.exit(main())"
    environment = {
        **os.environ, "_ARGCOMPLETE": "1", "_ARGCOMPLETE_IFS": " ", "COMP_LINE": line,
        "COMP_POINT": str(len(line)),
    }  # fmt: skip
    # A shell reads the answer from the eighth file.
    command = f"{shlex.quote(sys.executable)} -c {shlex.quote(code)} 8>&1 9>/dev/null"
    out = subprocess.run(
        ["/bin/sh", "-c", command], env=environment, capture_output=True, text=True, check=True
    ).stdout
    return {word.strip() for word in out.split()}


def test_completion() -> None:
    assert completions("adderize ") >= set(COMMANDS)
    assert completions("adderize in") == {"inspect"}
    assert completions("adderize plan resnet18 --no") == {"--no-depthwise", "--norm"}


def test_naming_a_command_needs_no_torch() -> None:
    code = (
        "import os, sys; from adderize import cli; cli._names_only(); "
        "assert not {'torch', 'adderize.cli.bench'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    "argv, reason",
    [
        (["count", "resnet18", "-o", "missing/table.txt"], "there is no folder missing for table"),
        (["count", "resnet18", "--plot", "."], ". is a folder; expected a file"),
        (["report", "resnet18", "-o", "file/report.html"], "there is no folder file for report"),
        (["bench", "gpu-report", "-o", "missing/all.json"], "there is no folder missing for all"),
        (["quantize", "saved", "--data", "d", "-o", "file"], "file is a file; expected a folder"),
        (["export", "saved", "-o", "file/c"], "file is a file; expected a folder"),
        (["transfer", "resnet20", "--weights", "w", "--data", "d", "-o", "file/x"], "is a file"),
    ],
)
def test_where_nothing_can_be_written_is_said_before_the_work(
    argv: list[str],
    reason: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    with pytest.raises(SystemExit) as leaving:
        main(argv)
    assert leaving.value.code == 2
    assert reason in capsys.readouterr().err
