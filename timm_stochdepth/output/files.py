"""Files that are whole or not there at all, and the rules of where one may be written."""
import errno
import hashlib
import os
import re
import shutil
import stat
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Callable, Generator, Optional, Sequence, Union

from .file_kinds import holds_kind

__all__ = [
    'as_path',
    'check_output_file',
    'check_place',
    'expand_home',
    'failure_named',
    'file_sha256',
    'why_not_writable',
    'workspace',
    'write_beside',
    'write_file',
]

PathLike = Union[str, Path]

WORKSPACE_PREFIX = '.timm-stochdepth-'

# a full disk or quota, a limit, a read-only file system, a broken disk
_REFUSALS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)


@contextmanager
def workspace(parent: Path) -> Generator[Path, None, None]:
    """A folder in `parent` that is gone when the block ends, whatever happens in it; parent is made if need be."""
    parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=WORKSPACE_PREFIX, dir=parent))
    try:
        yield folder
    finally:
        try:
            shutil.rmtree(folder, ignore_errors=True)
        except KeyboardInterrupt:  # in the middle of cleaning up: once more, and then stop
            shutil.rmtree(folder, ignore_errors=True)
            raise


def set_usual_mode(written: Path, work: Path) -> None:
    """Give a file, or each file of a folder, the mode that the umask asks for: some writers let nobody else read."""
    probe = work / 'mode'
    probe.touch()  # os.umask could only be read by changing it, for all threads
    mode = stat.S_IMODE(probe.stat().st_mode)
    for file in written.rglob('*') if written.is_dir() else [written]:
        if file.is_file() and stat.S_IMODE(file.stat().st_mode) != mode:
            file.chmod(mode)


@contextmanager
def write_beside(path: Path) -> Generator[Path, None, None]:
    """A path to write a file or a new folder to, moved to `path` when the block ends without an error.

    Whatever goes wrong meanwhile, what was at `path` before is still there, and nothing half-written. A file takes
    the place of a file; `check_output_file` and `OutputFolder` say whether it may.

    Raises:
        FileExistsError: There is a folder at `path`, or a folder was written and there is a file.
    """
    with failure_named(str(path)), workspace(path.parent) as work:
        beside = work / 'new' / path.name
        beside.parent.mkdir()
        yield beside
        if path.is_dir() or beside.is_dir() and os.path.lexists(path):
            raise FileExistsError(f'{path} is there already, and is left as it is.')
        set_usual_mode(beside, work)
        os.replace(beside, path)


@contextmanager
def write_file(
        path: PathLike,
        suffixes: Sequence[str],
        sources: Sequence[PathLike] = (),
        force: bool = False,
        name: str = 'OUT',
) -> Generator[Path, None, None]:
    """`write_beside` under the rules of `check_output_file`, which hold at the start and still at the end.

    Raises:
        FileExistsError: There is a file already that holds something else, and `force` is False.
    """
    target = check_output_file(path, suffixes, sources, name)
    with failure_named(f'{name} {str(path)!r}'), workspace(target.parent) as work:
        beside = work / 'new' / target.name
        beside.parent.mkdir()
        yield beside
        check_output_file(path, suffixes, sources, name)
        if os.path.lexists(target) and not force and file_sha256(target) != file_sha256(beside):
            raise FileExistsError(
                f'{name} must be a new file, or hold what is written already, but got {str(path)!r}, which holds'
                ' something else: --force replaces it.')
        set_usual_mode(beside, work)
        os.replace(beside, target)


def as_path(name: str, value: Any) -> Path:
    """Return value as a path, from a string or a path.

    Raises:
        TypeError: It is neither; the message names the argument.
    """
    if not isinstance(value, (str, os.PathLike)):
        raise TypeError(f'{name} must be a path, but got {value!r} ({type(value).__name__}).')
    return Path(value)


def expand_home(path: PathLike) -> Path:
    """The path, with the home folder for a `~` that no shell has expanded, as in `--out=~/figures`."""
    return Path(path).expanduser() if str(path) == '~' or str(path).startswith('~/') else Path(path)


def check_place(path: PathLike, name: str) -> Path:
    """Refuse a path at which nothing can be written.

    Args:
        path: Path of a file or folder to write.
        name: What the path is called where the user gave it.

    Raises:
        TypeError: It is no path.
        ValueError: The path is empty, or none that the system takes.
        NotADirectoryError: It lies in something that is no folder.
        PermissionError: It lies in a folder that cannot be written to.
    """
    as_path(name, path)
    if not str(path):
        raise ValueError(f"{name} must be a path, but got ''.")
    if re.match('[A-Za-z][A-Za-z0-9+.-]+:/', str(path)):
        raise ValueError(f'{name} must be a path on this machine, but got {str(path)!r}.')
    place = expand_home(path)
    try:
        os.lstat(place)  # os.path.exists does not say why a name cannot be
    except (FileNotFoundError, NotADirectoryError):
        pass
    except (OSError, ValueError) as e:  # too long, or with characters that no name has
        reason = e.strerror if isinstance(e, OSError) else e
        raise ValueError(f'{name} must be a path that can be written, but got {str(path)!r}: {reason}.') from e
    ancestor = next((p for p in place.absolute().parents if os.path.lexists(p)), place)
    if not ancestor.is_dir():
        raise NotADirectoryError(f'{name} must lie in a folder, but got {str(path)!r}, and {ancestor} is none.')
    reason = why_not_writable(ancestor)
    if reason:
        raise PermissionError(
            f'{name} must lie in a folder that can be written to, but got {str(path)!r}, and {ancestor} cannot be:'
            f' {reason}.')
    return place


def why_not_writable(folder: Path) -> Optional[str]:
    """Why nothing can be written to a folder, by an attempt that leaves nothing: rights say nothing of a full disk."""
    try:
        with tempfile.TemporaryFile(dir=folder, prefix=WORKSPACE_PREFIX) as file:
            file.write(bytes(4096))
            file.flush()
    except OSError as e:
        return e.strerror or str(e)
    return None


@contextmanager
def failure_named(name: str) -> Generator[None, None, None]:
    """Context in which a file is written beside its place: what fails is told of the place, which the user knows.

    Raises:
        OSError: The disk is full, or the like.
    """
    try:
        yield
    except Exception as e:
        reason = _refusal(e)
        if reason is None:
            raise
        raise OSError(f'{name} cannot be written: {reason}.') from e


def _refusal(error: Exception) -> Optional[str]:
    """What the system said when it took no more of a file, if that is what an error is about."""
    cause = error if isinstance(error, OSError) else error.__context__  # torch.save hides the one of its file
    number = cause.errno if isinstance(cause, OSError) else None
    said = re.search(r'\(os error (\d+)\)', str(error))  # safetensors
    if said:
        number = int(said[1])
    return os.strerror(number) if number in _REFUSALS else None


def check_output_file(
        path: PathLike,
        suffixes: Sequence[str],
        sources: Sequence[PathLike] = (),
        name: str = 'OUT',
) -> Path:
    """Refuse a file that must not be written, before the work for it starts.

    Args:
        path: File to write.
        suffixes: Suffixes of its name that are allowed, as in `'.pth.tar'`: each says a format.
        sources: Files and folders that the work reads.
        name: What the path is called where the user gave it.

    Returns:
        The path.

    Raises:
        ValueError: The suffix is none of these, or the file one of the sources; or as in `check_place`.
        OSError: Something is there that no file of that format may replace; or as in `check_place`.
    """
    target = check_place(path, name)
    if str(path).endswith(('/', os.sep)) or target.is_dir():
        raise IsADirectoryError(f'{name} must be a file to write, but got {str(path)!r}, a folder.')
    for source in map(Path, sources):
        if _is_part_of(target, source):
            raise ValueError(f'{name} must not be what is read, but got {str(path)!r}, and {source} is read.')
    suffix = next((s for s in suffixes if target.name.endswith(s) and target.name != s), None)
    if suffix is None:
        raise ValueError(f'{name} must end in {" or ".join(suffixes)}, but got {str(path)!r}.')
    if os.path.lexists(target) and not holds_kind(target, suffix):
        raise FileExistsError(
            f'{name} must be a new file, or one that holds what {suffix} says, but got {str(path)!r}, which holds'
            ' something else.')
    return target


def _is_part_of(target: Path, source: Path) -> bool:
    """Whether a file is another one, or one of a folder's, under whatever name."""
    if not target.exists() or not source.exists():
        return False
    return any(p.samefile(target) for p in (source.rglob('*') if source.is_dir() else [source]) if p.exists())


def file_sha256(path: Path, tell: Callable[[int], object] = lambda num_bytes: None) -> str:
    """The SHA-256 of a file; `tell` is called with the number of bytes of each part that was read."""
    digest = hashlib.sha256()
    with path.open('rb') as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
            tell(len(chunk))
    return digest.hexdigest()
