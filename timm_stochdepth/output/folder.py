"""Folders that a command writes to: new, empty, or marked as written by the same command before."""
import json
import os
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import Collection, Dict, Generator, Iterator, List, Optional

from .files import (
    WORKSPACE_PREFIX,
    PathLike,
    check_place,
    failure_named,
    file_sha256,
    set_usual_mode,
    why_not_writable,
    workspace,
    write_beside,
)

__all__ = ['MARK', 'OutputFolder', 'check_folder', 'entries', 'write_new_folder']

MARK = '.timm-stochdepth.json'


def check_folder(path: PathLike, name: str) -> Path:
    """Refuse a path that is no folder which can be written to, or at which none can be made.

    Raises:
        ValueError: The path is none that can be written.
        OSError: It is something else than a folder, or cannot be written to.
    """
    folder = check_place(path, name)
    if os.path.lexists(folder) and not folder.is_dir():
        raise NotADirectoryError(f'{name} must be a folder to write to, but got {str(path)!r}, which is none.')
    reason = why_not_writable(folder) if folder.is_dir() else None
    if reason or folder.is_dir() and not os.access(folder, os.R_OK):
        raise PermissionError(
            f'{name} must be a folder that can be written to, but got {str(path)!r}: {reason or "it cannot be read"}.')
    return folder


def entries(folder: Path) -> List[Path]:
    """What a folder holds; a workspace that a killed process left is nothing."""
    if not folder.is_dir():
        return []
    return sorted(p for p in folder.iterdir() if not p.name.startswith(WORKSPACE_PREFIX))


def _files(place: Path) -> Iterator[Path]:
    """A file, a link, or those of a folder."""
    if place.is_dir() and not place.is_symlink():
        for entry in place.iterdir():
            yield from _files(entry)
    elif os.path.lexists(place):
        yield place


class OutputFolder:
    """A folder that one command writes to, and in which it replaces nothing but what it wrote there itself.

    A mark in the folder lists each file that the command wrote, with its SHA-256. What is not listed, or has changed,
    is somebody's own: it is never replaced or removed.

    Args:
        path: The folder. Nothing is made before `claim`.
        command: Name of the command.
        name: What the path is called where the user gave it.

    Raises:
        ValueError: The path is none that can be written.
        OSError: It cannot be written to, is no folder, or holds something and is not marked by the command.
    """

    def __init__(self, path: PathLike, command: str, name: str = '--out') -> None:
        self.path = check_folder(path, name)
        self.command = command
        self.name = name
        listed = self._read_mark()
        foreign = entries(self.path)
        if listed is None and foreign:
            raise FileExistsError(
                f'{name} must be a new or empty folder, or one that `timm-stochdepth {command}` made, but got'
                f' {str(path)!r}, which holds {foreign[0].name}.')
        self._listed: Dict[str, List[str]] = listed or {}

    def claim(self) -> None:
        """Make the folder, and mark it: to be called when all arguments are checked, before long work."""
        self.path.mkdir(parents=True, exist_ok=True)
        self._write_mark(self._listed)

    @contextmanager
    def claimed(self) -> Generator[None, None, None]:
        """`claim` for a block: if it ends with an error and has written nothing, what was made for it is gone."""
        made = [place for place in (self.path, *self.path.parents) if not place.exists()]
        is_marked = (self.path / MARK).exists()
        try:
            self.claim()
            yield
        except BaseException:
            if not is_marked and not self._listed:
                (self.path / MARK).unlink(missing_ok=True)
                with suppress(OSError):  # somebody else's is in it meanwhile
                    for place in made:
                        place.rmdir()
            raise

    def check(self, *names: str) -> None:
        """Refuse places in the folder where something is that the command did not write, or that has changed since.

        Raises:
            FileExistsError: It names the first such thing.
            ValueError: A name leads outside of the folder.
        """
        for name in names:
            self._check_inside(name)
            for file in _files(self.path / name):
                if not self._is_own(file):
                    raise FileExistsError(
                        f'{self.name} must hold nothing of others at {name!r}, but {file} was not written by'
                        f' `timm-stochdepth {self.command}`, or has changed since: it is left as it is.')

    def holds(self, name: str) -> bool:
        """Whether a file or folder is there just as the command wrote it, nothing missing and nothing more."""
        found = {self._relative(file) for file in _files(self.path / name) if self._is_own(file)}
        return bool(found) and found == set(self._listed_at(name)) == set(map(self._relative, _files(self.path / name)))

    @contextmanager
    def write(self, name: str) -> Generator[Path, None, None]:
        """A path to write a file or a folder to, moved to its place in the folder when the block ends without error.

        Raises:
            FileExistsError: Something of others is at that place, as in `check`.
        """
        self.check(name)
        place = self.path / name
        with failure_named(f'{self.name} {str(place)!r}'), workspace(self.path) as work:
            beside = work / 'new' / place.name
            beside.parent.mkdir()
            yield beside
            set_usual_mode(beside, work)
            written = {
                str(PurePosixPath(name, *file.relative_to(beside).parts)): [file_sha256(file)]
                for file in _files(beside)}
            self._listed = self._read_mark() or {}  # another run may have written meanwhile
            self.check(name)
            old = self._listed_at(name)
            others = {n: hashes for n, hashes in self._listed.items() if n not in old}
            # whichever of both is found after a crash is the command's own
            self._write_mark({
                **others,
                **{n: [*old.get(n, []), *written.get(n, [])] for n in {**old, **written}},
            })
            place.parent.mkdir(parents=True, exist_ok=True)
            _replace(beside, place, work / 'replaced')
            self._write_mark({**others, **written})

    def keep(self, names: Collection[str]) -> None:
        """Remove the files that an earlier run wrote and this one did not; those that have changed stay."""
        for name in sorted(set(self._listed) - set(names)):
            self._check_inside(name)
            if self._is_own(self.path / name):
                (self.path / name).unlink()
        self._write_mark({n: hashes for n, hashes in self._listed.items() if n in names})

    def _listed_at(self, name: str) -> Dict[str, List[str]]:
        return {n: h for n, h in self._listed.items() if PurePosixPath(n).is_relative_to(PurePosixPath(name))}

    def _relative(self, file: Path) -> str:
        return file.relative_to(self.path).as_posix()

    def _is_own(self, file: Path) -> bool:
        hashes = self._listed.get(self._relative(file))
        return bool(hashes) and file.is_file() and not file.is_symlink() and file_sha256(file) in (hashes or [])

    def _check_inside(self, name: str) -> None:
        place = PurePosixPath(name)
        if place.parts == (MARK,):
            raise ValueError(f'a file must not have the name of the mark, but got {name!r}.')
        if place.is_absolute() or '..' in place.parts or not place.parts:
            raise ValueError(f'a file name must stay inside of its folder, but got {name!r}.')
        if not (self.path / name).parent.resolve().is_relative_to(self.path.resolve()):  # through a link
            raise ValueError(f'a file name must stay inside of its folder, but {self.path / name} leads outside.')

    def _read_mark(self) -> Optional[Dict[str, List[str]]]:
        try:
            mark = json.loads((self.path / MARK).read_text(encoding='utf-8'))
            return {str(n): list(h) for n, h in mark['files'].items()} if mark['command'] == self.command else None
        except (OSError, ValueError, KeyError, TypeError, AttributeError):  # none, or nobody's
            return None

    def _write_mark(self, listed: Dict[str, List[str]]) -> None:
        with write_beside(self.path / MARK) as file:
            file.write_text(json.dumps(dict(command=self.command, files=listed), indent=1) + '\n', encoding='utf-8')
        self._listed = listed


def _replace(new: Path, place: Path, replaced: Path) -> None:
    if not (place.is_dir() or new.is_dir() and os.path.lexists(place)):
        os.replace(new, place)
        return
    os.replace(place, replaced)  # os.replace takes no folder's place
    try:
        os.replace(new, place)
    except BaseException:
        os.replace(replaced, place)
        raise


@contextmanager
def write_new_folder(path: PathLike, name: str = '--out') -> Generator[Path, None, None]:
    """A folder to write to, moved to `path` when the block ends without an error: it holds nothing else, no mark.

    The folder must be new or empty, or hold nothing but the very same files, of a run that was cut off for instance.

    Raises:
        ValueError: The path is none that can be written.
        OSError: It cannot be written to, is no folder, or holds something else.
    """
    folder = check_folder(path, name)
    with failure_named(f'{name} {str(path)!r}'), workspace(folder if folder.is_dir() else folder.parent) as work:
        beside = work / 'new'
        beside.mkdir()
        yield beside
        set_usual_mode(beside, work)
        if not folder.is_dir():
            os.replace(beside, folder)
            return
        for file in (f for entry in entries(folder) for f in _files(entry)):
            same = beside / file.relative_to(folder)
            if file.is_symlink() or not same.is_file() or file_sha256(same) != file_sha256(file):
                raise FileExistsError(
                    f'{name} must be a new or empty folder, or hold the same files, but got {str(path)!r}, where'
                    f' {file.relative_to(folder)} differs.')
        for file in list(_files(beside)):  # into the user's own folder, mode and all
            target = folder / file.relative_to(beside)
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(file, target)
