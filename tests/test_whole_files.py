"""Whatever ends a process while it replaces files, there is no mixture of old and new ones."""

from __future__ import annotations

import contextlib
import errno
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from adderize import AdderizeError, whole_files
from adderize.whole_files import replaced_file, replaced_files


class Killed(BaseException):
    pass


@contextlib.contextmanager
def killed_at(change: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The process ends before its ``change``-th removal or renaming of a file: no cleaning up."""
    left = change

    def counted(method: Any) -> Any:
        def act(*args: Any, **kwargs: Any) -> Any:
            nonlocal left
            left -= 1
            if left < 0:
                raise Killed
            return method(*args, **kwargs)

        return act

    def kept(dir: Path, prefix: str) -> Any:
        return contextlib.nullcontext(tempfile.mkdtemp(dir=dir, prefix=prefix))

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(whole_files.tempfile, "TemporaryDirectory", kept)
        patch.setattr(Path, "replace", counted(Path.replace))
        patch.setattr(Path, "unlink", counted(Path.unlink))
        yield


def files_of(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir() if path.is_file()}


def write(folder: Path, text: str) -> None:
    with replaced_files(folder, "head") as unfinished:
        for name in ("head", "first", "second"):
            (unfinished / name).write_text(text)


@pytest.mark.parametrize("change", range(4))
def test_a_killed_process_leaves_the_old_files_or_no_head(
    change: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, "old")
    with killed_at(change, monkeypatch):
        write(tmp_path, "new")
    left = files_of(tmp_path)
    assert "head" not in left if change else set(left.values()) == {"old"}
    write(tmp_path, "newest")
    assert files_of(tmp_path) == dict.fromkeys(("head", "first", "second"), "newest")


def test_a_full_disk_leaves_the_old_files(tmp_path: Path) -> None:
    write(tmp_path, "old")
    before = files_of(tmp_path)
    with (
        pytest.raises(AdderizeError, match=rf"cannot write to {tmp_path}: No space left"),
        replaced_files(tmp_path, "head") as unfinished,
    ):
        (unfinished / "first").write_text("new")
        raise OSError(errno.ENOSPC, "No space left on device")
    assert files_of(tmp_path) == before
    assert len(list(tmp_path.iterdir())) == len(before)


def test_a_single_file_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    file = tmp_path / "file"
    for text in ("old", "new"):
        with replaced_file(file) as unfinished:
            unfinished.write_text(text)
            assert not file.exists() or file.read_text() == "old"
    with pytest.raises(KeyError), replaced_file(file) as unfinished:
        unfinished.write_text("ne")
        raise KeyError
    assert files_of(tmp_path) == {"file": "new"}


def test_a_link_stays_one(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    file, link = tmp_path / "folder" / "file", tmp_path / "link"
    link.symlink_to(file)
    for text in ("new", "newer"):
        with replaced_file(link) as unfinished:
            unfinished.write_text(text)
        assert link.is_symlink() and file.read_text() == text
    assert [path.name for path in file.parent.iterdir()] == ["file"]


def test_what_is_no_file_is_written_to() -> None:
    with replaced_file(Path(os.devnull)) as unfinished:
        unfinished.write_text("text")
    assert not Path(os.devnull).is_file()
