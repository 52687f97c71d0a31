"""Archives are read in one pass: whole, or with an error; nothing leads out, nothing explodes."""

import gzip
import io
import logging
import lzma
import resource
import subprocess
import sys
import tarfile
import textwrap
from pathlib import Path

import pytest

from gpattern_bench.errors import SourceError
from gpattern_bench.sources.archive import members

FILES = {"Lung/tx.csv": b"fov,x\n1,2\n" * 500, "Lung/labels/F001.tif": b"II*\0" + bytes(3000)}


def add(archive: tarfile.TarFile, name: str, content: bytes = b"", **fields: object) -> None:
    header = tarfile.TarInfo(name)
    header.size = len(content)
    for key, value in fields.items():
        setattr(header, key, value)
    archive.addfile(header, io.BytesIO(content))


def make(path: Path, files: dict[str, bytes] = FILES, mode: str = "w:gz") -> Path:
    with tarfile.open(path, mode) as archive:
        for name, content in files.items():
            add(archive, name, content)
    return path


def read(path: Path, **limits: int) -> dict[str, bytes]:
    return {name: file.read() for name, file in members(path, **limits)}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "release.tar.gz"


# What is in it


@pytest.mark.parametrize("mode", ["w:", "w:gz", "w:bz2", "w:xz"])
def test_files_in_the_order_of_the_archive_whatever_its_compression(path, mode):
    assert list(read(make(path, mode=mode)).items()) == list(FILES.items())


@pytest.mark.parametrize("kind", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_formats_of_headers(path, kind):
    name = "a" * 90 + "/" + "b" * 90  # longer than a plain header's field
    with tarfile.open(path, "w:gz", format=kind) as archive:
        add(archive, name, b"1")
        add(archive, "Lung/µm.csv", b"2")
    assert read(path) == {name: b"1", "Lung/µm.csv": b"2"}


def test_folders_are_passed_over_and_names_are_plain(path):
    with tarfile.open(path, "w:gz") as archive:
        add(archive, "./", type=tarfile.DIRTYPE)
        add(archive, "./Lung", type=tarfile.DIRTYPE)
        add(archive, "./Lung//tx.csv", b"1")
        add(archive, "Lung\\fov.csv", b"2")
    assert read(path) == {"Lung/tx.csv": b"1", "Lung/fov.csv": b"2"}


def test_files_need_not_be_read(path):
    assert [name for name, _ in members(make(path))] == list(FILES)


def test_reading_can_stop(path):
    for name, _ in members(make(path)):
        assert name == "Lung/tx.csv"
        break


def test_file_is_read_in_pieces_and_by_lines(path):
    _, file = next(members(make(path)))
    assert file.readline() == b"fov,x\n"
    assert file.read(3) == b"1,2"


def test_gzip_in_several_parts_is_one_archive(path):
    whole = gzip.decompress(make(path).read_bytes())
    path.write_bytes(gzip.compress(whole[:700]) + gzip.compress(whole[700:]))
    assert read(path) == FILES


@pytest.mark.slow
def test_memory_does_not_grow_with_the_archive(tmp_path):
    with tarfile.open(tmp_path / "many.tar", "w") as archive:
        for i in range(20000):
            add(archive, f"{i}.csv", b"x")
    with tarfile.open(tmp_path / "long.tar.gz", "w:gz", compresslevel=1) as archive:
        add(archive, "long.csv", b"1,2,3\n" * (20 << 20))
    code = """
        import resource, sys
        from pathlib import Path
        from gpattern_bench.sources.archive import members
        def peak():
            return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        before = peak()
        for path in sys.argv[1:]:
            for name, file in members(Path(path)):
                while file.read(1 << 16):
                    pass
        print(peak() - before)
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    command += [str(tmp_path / "many.tar"), str(tmp_path / "long.tar.gz")]
    grown = subprocess.run(command, capture_output=True, text=True, check=True)
    assert int(grown.stdout) < 12 << 10  # KiB; the archives hold 12 and 120 MiB


# Names that lead out, links, devices


@pytest.mark.parametrize(
    "name",
    ["../tx.csv", "Lung/../../tx.csv", "/etc/passwd", "..", "..\\tx.csv", "C:\\tx.csv", "C:tx.csv"],
)
def test_name_that_leads_out_is_an_error(path, name):
    make(path, {"Lung/tx.csv": b"1", name: b"2"})
    with pytest.raises(SourceError, match="points outside the archive") as caught:
        read(path)
    assert repr(name) in str(caught.value)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    "kind",
    [
        tarfile.SYMTYPE,
        tarfile.LNKTYPE,
        tarfile.CHRTYPE,
        tarfile.BLKTYPE,
        tarfile.FIFOTYPE,
    ],
)
def test_links_and_devices_are_left_out_and_named(path, kind, caplog):
    with tarfile.open(path, "w:gz") as archive:
        add(archive, "passwd", type=kind, linkname="../../etc/passwd")
        add(archive, "tx.csv", b"1")
    with caplog.at_level(logging.WARNING, "gpattern_bench"):
        assert read(path) == {"tx.csv": b"1"}
    assert "passwd is a link or a device" in caplog.text


# Too large


def test_more_bytes_than_the_limit(path):
    assert read(make(path), max_bytes=20480) == FILES
    with pytest.raises(SourceError, match="unpacks to more than 8,003 bytes"):
        read(path, max_bytes=sum(map(len, FILES.values())) - 1)


def test_limit_holds_for_files_that_are_not_read(path):
    with pytest.raises(SourceError, match="unpacks to more than"):
        list(members(make(path), max_bytes=8000))


def test_limit_holds_behind_the_end_mark(path):
    path.write_bytes(gzip.compress(bytes(1 << 20)))  # nothing but an end mark, and more of it
    assert read(path) == {}
    with pytest.raises(SourceError, match="unpacks to more than"):
        read(path, max_bytes=1 << 19)


def test_ratio_above_which_an_archive_is_a_bomb(path, monkeypatch):
    monkeypatch.setattr("gpattern_bench.sources.archive._ALWAYS", 1 << 20)
    make(path, {"zeros": bytes(8 << 20)})
    assert path.stat().st_size < 10_000
    with pytest.raises(SourceError, match="unpacks to more than"):
        read(path)
    assert len(read(path, max_ratio=2000)["zeros"]) == 8 << 20


def test_size_that_the_header_claims_counts(path):
    header = tarfile.TarInfo("claims.csv")
    header.size = 1 << 50
    path.write_bytes(header.tobuf(format=tarfile.GNU_FORMAT))
    with pytest.raises(SourceError, match="unpacks to more than"):
        read(path)


def test_bomb_in_a_header_takes_no_memory(path):
    header = tarfile.TarInfo("././@PaxHeader")
    header.type, header.size = tarfile.XHDTYPE, 4 << 30
    zeros = bytes(1 << 20)
    with lzma.open(path, "wb", preset=0) as file:
        file.write(header.tobuf(format=tarfile.GNU_FORMAT))
        for _ in range(64):
            file.write(zeros)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(SourceError, match=r"header of 4,294,967,296 bytes"):
        read(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 32 << 10


@pytest.mark.parametrize("version", ["0.0", "1.0"])
def test_sparse_file_counts_with_its_whole_size(path, version):
    major, minor = version.split(".")
    about = {"GNU.sparse.major": major, "GNU.sparse.minor": minor}
    about |= {"GNU.sparse.name": "x", "GNU.sparse.realsize": str(1 << 50)}
    about |= {"GNU.sparse.size": str(1 << 50), "GNU.sparse.numblocks": "0", "GNU.sparse.map": "0,0"}
    with tarfile.open(path, "w:gz", format=tarfile.PAX_FORMAT) as archive:
        header = tarfile.TarInfo("x")
        header.size, header.pax_headers = 512, about
        archive.addfile(header, io.BytesIO(b"1\n0\n0\n".ljust(512, b"\0")))
    with pytest.raises(SourceError, match="unpacks to more than"):
        read(path)


# Not whole


@pytest.mark.parametrize("mode", ["w:", "w:gz", "w:bz2", "w:xz"])
def test_cut_anywhere_is_an_error(path, mode):
    whole = make(path, mode=mode).read_bytes()
    compressed = len(whole) < 9000
    last = len(whole) if compressed else 9728  # a plain archive ends with zeros
    for end in {0, 1, 2, 300, 512, 700, 1024, 7000, 9215, 9216, last - 9, last - 1}:
        if end < last:
            path.write_bytes(whole[:end])
            with pytest.raises(SourceError, match=r"release\.tar\.gz (is|cannot)"):
                read(path)


def test_damaged_byte_is_an_error(path):
    whole = bytearray(make(path).read_bytes())
    whole[-5] ^= 1  # the checksum
    path.write_bytes(whole)
    with pytest.raises(SourceError, match=r"is cut or damaged .*fetch it again"):
        read(path)


def test_damaged_header_in_the_middle_is_an_error(path):
    whole = bytearray(make(path, mode="w:").read_bytes())
    whole[512 + 5120 : 512 + 5130] = b"?" * 10  # the second file's name
    path.write_bytes(whole)
    with pytest.raises(SourceError, match="is not a whole tar archive"):
        read(path)


@pytest.mark.parametrize(
    "content",
    [b"", b"<!DOCTYPE html>" * 100, b"\x1f\x8b", b"PK\3\4" * 400, gzip.compress(b"text")],
    ids=["empty", "HTML", "magic", "zip", "gzip of text"],
)
def test_what_is_no_archive_is_an_error(path, content):
    path.write_bytes(content)
    with pytest.raises(SourceError, match=r"release\.tar\.gz is"):
        read(path)


def test_file_that_is_not_there(path):
    with pytest.raises(SourceError, match=r"release\.tar\.gz cannot be opened"):
        read(path)
