"""The JSON files of a .tar.gz, one after the other in the order of the archive, nothing unpacked onto the disk.

Not a command: data/COIG/split.py uses it for the counterfactual chats.
"""

import gzip
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from data.converting import Raw, as_object
from utils.errors import DataFault
from utils.strict_json import line_values, refuse_other_forms


def read_members(source: Path) -> Iterator[Raw]:
    """Each member, which must be one JSON object. Hidden files, which some systems add, are skipped.

    Raises DataFault for an archive that is cut or none at all, one without members, and a member that is a link, is
    no file, or whose path leads out of the archive: such an archive is not the published one.
    """
    with open(source, "rb") as file:
        refuse_other_forms(source, file.read(4096))
    empty = True
    try:
        with gzip.open(source) as stream, tarfile.open(fileobj=stream, mode="r:") as archive:
            for member in archive:
                where = f"{source}:{member.name}"
                if member.isdir() or not _is_chat(member, where):
                    continue
                empty = False
                yield Raw(where, {"member": member.name}, only_object(where, archive.extractfile(member).read()))
            _check_end(source, archive, stream)
    except (tarfile.TarError, zlib.error, EOFError, OSError) as error:
        if isinstance(error, OSError) and error.errno:  # the disk's own, e.g. no permission
            raise
        raise DataFault(f"{source}: not a whole .tar.gz archive: {error}") from None
    if empty:
        raise DataFault(f"{source}: the archive holds no .json file")


def _check_end(source: Path, archive: tarfile.TarFile, stream: gzip.GzipFile) -> None:
    """Raises DataFault where the archive stops before its end. tarfile takes a cut or damaged header for the end."""
    stream.seek(archive.offset)
    rest = iter(lambda: stream.read(1 << 20), b"")  # to the end, where gzip's checksum stands
    blocks = [bool(block.strip(b"\0")) for block in rest]
    if any(blocks) or not blocks:
        raise DataFault(f"{source}: not a whole .tar.gz archive: cut or damaged at byte {archive.offset} of the .tar")


def _is_chat(member: tarfile.TarInfo, where: str) -> bool:
    path = PurePosixPath(member.name)
    if path.is_absolute() or ".." in path.parts or "\\" in member.name:
        raise DataFault(f"{where}: the path leads out of the archive")
    if not member.isfile():
        raise DataFault(f"{where}: a link or a device, must be a file")
    return path.suffix == ".json" and not path.name.startswith(".")


def only_object(where: str, data: bytes) -> dict:
    """The one JSON object that `data` holds; where: what to call it in a message. Raises DataFault."""
    values = list(line_values(Path(where), 1, data))
    if len(values) != 1:
        raise DataFault(f"{where}: {len(values)} JSON values, must be one object")
    return as_object(where, values[0])
