"""Atomic file writes and output-path checks."""
import errno
import os
import re
import shutil
import stat
import tempfile
from contextlib import contextmanager, suppress
from fnmatch import fnmatch
from pathlib import Path
from typing import Generator, Optional, Sequence, Union

__all__ = [
    'PREFIX', 'WEIGHTS', 'check_folder', 'check_new', 'check_output_file', 'check_path', 'expand_home', 'move_files',
    'workspace', 'write_beside', 'write_into',
]

PathLike = Union[str, Path]

WEIGHTS = ('.safetensors', '.pth', '.pth.tar', '.pt', '.bin')

PREFIX = '.timm-stochdepth'  # of what is not a user's: workspaces, broken downloads

# a full disk or quota, a limit, a read-only file system, a broken disk
_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)


def expand_home(path: PathLike) -> Path:
    """Expand a `~` that no shell has expanded, as in `--out=~/figures`."""
    return Path(path).expanduser() if str(path) == '~' or str(path).startswith('~/') else Path(path)


def check_path(path: PathLike, name: str) -> Path:
    """Refuse a path at which nothing can be written; `name` is what it is called where the user gave it.

    Raises:
        TypeError: It is not a path.
        ValueError: It is empty, an address, or no path for the system.
        OSError: Its folder is not one, or cannot be written to.
    """
    if not isinstance(path, (str, os.PathLike)):
        raise TypeError(f'{name} must be a path, but got {path!r} ({type(path).__name__}).')
    if not str(path) or re.match('[A-Za-z][A-Za-z0-9+.-]+:/', str(path)):
        raise ValueError(f'{name} must be a path on this machine, but got {str(path)!r}.')
    target = expand_home(path)
    try:
        os.lstat(target)  # os.path.exists does not say why a name cannot be
    except (FileNotFoundError, NotADirectoryError):
        pass
    except (OSError, ValueError) as e:  # too long, a null character
        raise ValueError(f'{name} must be a path that can be written, but got {str(path)!r}: {e}.') from e
    folder = next(parent for parent in (target / '_').absolute().parents if os.path.lexists(parent))
    if folder != target.absolute() and not folder.is_dir():
        raise NotADirectoryError(f'{name} must lie in a folder, but got {str(path)!r}, and {folder} is not a folder.')
    try:
        with tempfile.TemporaryFile(dir=folder if folder.is_dir() else folder.parent, prefix=PREFIX) as file:
            file.write(bytes(4096))  # rights say nothing of a full disk
            file.flush()
    except OSError as e:
        raise PermissionError(
            f'{name} must lie in a folder that can be written to, but got {str(path)!r}: {e.strerror}.') from e
    return target


def check_output_file(path: PathLike, suffixes: Sequence[str], name: str) -> Path:
    """Refuse what is not the path of a file to write, whose suffix says the format.

    Raises:
        ValueError: The suffix is none of `suffixes`; or as in `check_path`.
        OSError: It is a folder; or as in `check_path`.
    """
    target = check_path(path, name)
    if str(path).endswith(('/', os.sep)) or target.is_dir():
        raise IsADirectoryError(f'{name} must be a file to write, but got {str(path)!r}, a folder.')
    if not any(target.name.endswith(suffix) and target.name != suffix for suffix in suffixes):
        raise ValueError(f'{name} must end in {" or ".join(suffixes)}, but got {str(path)!r}.')
    return target


def check_new(path: Path, name: str, force: bool = False, inputs: Sequence[Path] = ()) -> None:
    """Refuse a target that is there already, unless it is a file and `force` is True, or that is an input.

    Raises:
        ValueError: It is one of the inputs, or in one.
        FileExistsError: It is there already.
    """
    for read in inputs if path.exists() else ():
        if any(p.samefile(path) for p in (read.rglob('*') if read.is_dir() else [read]) if p.exists()):
            raise ValueError(f'{name} must not be what is read, but got {str(path)!r}, and {read} is read.')
    if os.path.lexists(path) and not (force and (path.is_file() or path.is_symlink())):
        hint = ': --force replaces it.' if path.is_file() else '.'
        raise FileExistsError(f'{name} must be new, but got {str(path)!r}, which is there already{hint}')


def check_folder(path: PathLike, name: str, force: bool = False, own: Sequence[str] = ()) -> Path:
    """Refuse a folder that is neither new nor empty, and holds more than the command's own files.

    Args:
        path: The folder.
        name: What it is called where the user gave it.
        force: Allow a folder that holds other things.
        own: Patterns of names of the command's own files.

    Raises:
        ValueError, OSError: As in `check_path`, or it holds other things.
    """
    folder = check_path(path, name)
    if os.path.lexists(folder) and not folder.is_dir():
        raise NotADirectoryError(f'{name} must be a folder to write to, but got {str(path)!r}, which is not a folder.')
    for entry in sorted(folder.iterdir()) if folder.is_dir() and not force else ():
        if not any(fnmatch(entry.name, pattern) for pattern in (f'{PREFIX}*', *own)):
            raise FileExistsError(
                f'{name} must be a new or empty folder, but got {str(path)!r}, which holds {entry.name}: --force'
                ' writes to it all the same.')
    return folder


@contextmanager
def workspace(parent: Path) -> Generator[Path, None, None]:
    """Temporary folder in `parent`, which is made if need be, and removed again if it stays empty."""
    made = [folder for folder in (parent, *parent.parents) if not folder.exists()]
    parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f'{PREFIX}-', dir=parent))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        with suppress(OSError):  # something is in it by now
            for folder in made:
                folder.rmdir()


@contextmanager
def write_beside(path: Path, force: bool = False, name: str = 'path') -> Generator[Path, None, None]:
    """Write a file or a new folder beside `path`, and move it there when the block ends without an error.

    Raises:
        FileExistsError: As in `check_new`.
        OSError: The disk is full, or the like; the message names the path.
    """
    with _disk_errors_named(path, name), workspace(path.parent) as work:
        beside = work / 'new' / path.name
        beside.parent.mkdir()
        yield beside
        check_new(path, name, force)
        _set_usual_mode(beside, work)
        os.replace(beside, path)


@contextmanager
def write_into(folder: Path, force: bool = False, name: str = '--out') -> Generator[Path, None, None]:
    """Write files beside those of a folder, and move them there when the block ends without an error.

    Raises:
        OSError: As in `check_folder`; or the disk is full, or the like.
    """
    with _disk_errors_named(folder, name), workspace(folder) as work:
        beside = work / 'new'
        beside.mkdir()
        yield beside
        check_folder(folder, name, force)
        _set_usual_mode(beside, work)
        move_files(beside, folder)


def move_files(folder: Path, target: Path) -> None:
    """Move the files of a folder into another one, in place of those of the same names."""
    for file in [file for file in folder.rglob('*') if file.is_file()]:
        path = target / file.relative_to(folder)
        path.parent.mkdir(parents=True, exist_ok=True)
        os.replace(file, path)


def _set_usual_mode(written: Path, work: Path) -> None:
    """Give files the mode that the umask asks for: some writers let nobody else read."""
    probe = work / 'mode'
    probe.touch()  # os.umask could only be read by changing it, for all threads
    for file in (*written.rglob('*'), written):
        if file.is_file():
            file.chmod(stat.S_IMODE(probe.stat().st_mode))


@contextmanager
def _disk_errors_named(path: Path, name: str) -> Generator[None, None, None]:
    """Name the user's path in errors of a full or broken disk."""
    try:
        yield
    except Exception as e:
        reason = _disk_error(e)
        if reason is None:
            raise
        raise OSError(f'{name} {str(path)!r} cannot be written: {reason}.') from e


def _disk_error(error: Exception) -> Optional[str]:
    cause = error if isinstance(error, OSError) else error.__context__  # torch.save hides the one of its file
    number = cause.errno if isinstance(cause, OSError) else None
    said = re.search(r'\(os error (\d+)\)', str(error))  # safetensors
    number = int(said[1]) if said else number
    return os.strerror(number) if number in _DISK_ERRORS else None
