"""Downloads from local servers that break off, change files or send false headers; malicious archives."""

import gzip
import hashlib
import io
import os
import random
import signal
import socket
import stat
import subprocess
import sys
import tarfile
import threading
import time
import zipfile
from collections import deque
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import pytest

from gafx.data.download import archive as archives
from gafx.data.download import fetch
from gafx.data.download.archive import UnfitArchive, unpack
from gafx.data.download.fetch import fetch_url
from gafx.data.download.install import install, tree_digest
from gafx.errors import UsageError

DATA = random.Random(0).randbytes(1_000_000)
SHA256 = hashlib.sha256(DATA).hexdigest()
COMMIT = "c" * 40


class Site(ThreadingHTTPServer):
    """Serves `files`; each request takes one behaviour from `script`, and is logged with the bytes that were sent.

    Behaviours: an int is a status; `cut` ends the connection after that many bytes, once the `Content-Length` of all
    has gone out; `ranges=False` ignores ranges; `slow` sends 64 KiB in that many seconds; `headers` adds to the
    answer, where `None` takes one away; `to` redirects.
    """

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.files, self.etag, self.script, self.log = {}, {}, deque(), []
        self.always = {}

    def gets(self):
        return [entry for entry in self.log if entry.method == "GET"]


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *arguments):
        pass

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        site = self.server
        act = site.always.get(self.path)
        if act is None:
            wanted = self.command == "GET" and self.path in site.files
            act = site.script.popleft() if site.script and wanted else {}
        entry = SimpleNamespace(
            method=self.command,
            path=self.path,
            range=self.headers["Range"],
            token=self.headers["Authorization"],
            sent=0,
        )
        site.log.append(entry)
        if isinstance(act, int) or (self.path not in site.files and "to" not in act):
            self.send_response(act if isinstance(act, int) else 404)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        data, etag = site.files.get(self.path, b""), site.etag.get(self.path, '"one"')
        start, status = 0, 200
        if self.headers["Range"] and act.get("ranges", True) and self.headers["If-Range"] == etag:
            start, status = int(self.headers["Range"].removeprefix("bytes=").rstrip("-")), 206
        headers = {"ETag": etag, "Content-Length": str(len(data) - start)}
        if status == 206:
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        if "to" in act:
            status, headers = 302, {"Location": act["to"], "Content-Length": "0"}
        self.send_response(status)
        for name, value in {**headers, **act.get("headers", {})}.items():
            if value is not None:
                self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD" or status == 302:
            return
        end = min(start + act.get("cut", len(data)), len(data))
        try:
            for at in range(start, end, 1 << 16):
                block = data[at : min(at + (1 << 16), end)]
                entry.sent += len(block)  # before it is: the client may be done before this thread is
                self.wfile.write(block)
                time.sleep(act.get("slow", 0))
        except OSError:
            pass


@pytest.fixture
def site(monkeypatch):
    monkeypatch.setattr(fetch, "_PAUSE", 0.01)
    monkeypatch.setenv("no_proxy", "127.0.0.1,localhost")
    server = Site()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    server.files["/a.bin"] = DATA
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def python(code, *arguments, **keywords):
    prelude = """
import sys
from pathlib import Path
from gafx.data.download import fetch
from gafx.data.download.archive import unpack
from gafx.data.download.fetch import fetch_url
from gafx.data.download.hub_files import fetch_hub
from gafx.data.download.install import install
from gafx.errors import UsageError
fetch._PAUSE = 0.01
"""
    return subprocess.Popen(
        [sys.executable, "-c", prelude + code, *map(str, arguments)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **keywords,
    )  # fmt: skip


def wait_for(condition, seconds=10.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


# ---- fetch_url


def test_plain_fetch(site, tmp_path, capsys):
    path = tmp_path / "deep" / "a.bin"
    assert fetch_url(f"{site.url}/a.bin", path, sha256=SHA256.upper(), size=len(DATA)) == path
    assert path.read_bytes() == DATA
    assert [p.name for p in path.parent.iterdir()] == ["a.bin"]
    fetch_url(f"{site.url}/a.bin", path, sha256=SHA256)
    assert len(site.log) == 1
    assert capsys.readouterr() == ("", "")


def test_a_cut_connection_is_continued(site, tmp_path):
    site.script.extend([{"cut": 300_000}, {"cut": 400_000}])
    path = fetch_url(f"{site.url}/a.bin", tmp_path / "a.bin", sha256=SHA256)
    assert path.read_bytes() == DATA
    assert [entry.range for entry in site.log] == [None, "bytes=300000-", "bytes=700000-"]
    assert sum(entry.sent for entry in site.log) == len(DATA)


def test_progress_renews_the_tries(site, tmp_path):
    site.script.extend([{"cut": 100_000}] * 9)
    assert fetch_url(f"{site.url}/a.bin", tmp_path / "a.bin", tries=2).read_bytes() == DATA


def test_a_killed_process_is_continued(site, tmp_path):
    site.script.append({"slow": 0.2})
    path = tmp_path / "a.bin"
    part = tmp_path / "a.bin.part"
    code = "fetch_url(sys.argv[1], Path(sys.argv[2]), sha256=sys.argv[3])"
    process = python(code, f"{site.url}/a.bin", path, SHA256)
    wait_for(lambda: part.exists() and part.stat().st_size >= 1 << 17)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    here = part.stat().st_size
    assert 0 < here < len(DATA)
    assert fetch_url(f"{site.url}/a.bin", path, sha256=SHA256).read_bytes() == DATA
    assert site.log[1].range == f"bytes={here}-"
    assert site.log[1].sent == len(DATA) - here


def test_a_whole_part_is_recognised(site, tmp_path):
    site.script.extend([{"cut": 999_999}])
    with pytest.raises(UsageError, match="could not be fetched in 1 tries"):
        fetch_url(f"{site.url}/a.bin", tmp_path / "a.bin", tries=1)
    with (tmp_path / "a.bin.part").open("ab") as file:
        file.write(DATA[-1:])
    assert fetch_url(f"{site.url}/a.bin", tmp_path / "a.bin").read_bytes() == DATA
    assert len(site.log) == 1


def test_a_server_without_ranges(site, tmp_path):
    site.script.extend([{"cut": 300_000}, {"ranges": False}])
    assert fetch_url(f"{site.url}/a.bin", tmp_path / "a.bin").read_bytes() == DATA
    assert site.log[1].range is not None
    assert site.log[1].sent == len(DATA)


def test_a_server_that_always_cuts_and_knows_no_ranges_comes_to_an_end(site, tmp_path):
    site.always["/a.bin"] = {"cut": 300_000, "ranges": False}
    with pytest.raises(UsageError, match="in 3 tries .*300000 of 1000000 bytes"):
        fetch_url(f"{site.url}/a.bin", tmp_path / "a.bin", tries=3)
    assert len(site.log) == 3


@pytest.mark.parametrize("version", [{"ETag": None}, {"ETag": 'W/"weak"'}])
def test_no_continuation_without_a_strong_version(site, tmp_path, version):
    site.script.extend([{"cut": 300_000, "headers": version}])
    assert fetch_url(f"{site.url}/a.bin", tmp_path / "a.bin").read_bytes() == DATA
    assert site.log[1].range is None


def test_a_date_is_a_version_too(site, tmp_path):
    site.etag["/a.bin"] = date = "Mon, 01 Jan 2024 00:00:00 GMT"  # what the server compares If-Range with
    site.always["/a.bin"] = {"cut": 600_000, "headers": {"ETag": None, "Last-Modified": date}}
    assert fetch_url(f"{site.url}/a.bin", tmp_path / "a.bin").read_bytes() == DATA
    assert site.log[1].range == "bytes=600000-"


@pytest.mark.parametrize("honest", [True, False])
def test_a_file_that_changes_between_tries(site, tmp_path, honest):
    site.script.extend([{"cut": 300_000}])
    with pytest.raises(UsageError):
        fetch_url(f"{site.url}/a.bin", tmp_path / "a.bin", tries=1)
    site.files["/a.bin"] = other = random.Random(1).randbytes(len(DATA))
    if honest:
        site.etag["/a.bin"] = '"two"'
    else:  # takes no notice of If-Range, but names the new version
        site.script.append({"headers": {"ETag": '"two"'}})
    assert fetch_url(f"{site.url}/a.bin", tmp_path / "a.bin").read_bytes() == other


def test_a_part_of_something_else_is_not_continued(site, tmp_path):
    site.script.extend([{"cut": 300_000}])
    with pytest.raises(UsageError):
        fetch_url(f"{site.url}/a.bin", tmp_path / "a.bin", tries=1)
    site.files["/b.bin"] = DATA[::-1]
    assert fetch_url(f"{site.url}/b.bin", tmp_path / "a.bin").read_bytes() == DATA[::-1]
    (tmp_path / "c.bin.part").write_bytes(b"nobody knows")
    (tmp_path / "c.bin.part.json").write_text("[1")
    assert fetch_url(f"{site.url}/a.bin", tmp_path / "c.bin").read_bytes() == DATA


def test_416_begins_again(site, tmp_path):
    site.script.extend([{"cut": 300_000}, 416])
    assert fetch_url(f"{site.url}/a.bin", tmp_path / "a.bin").read_bytes() == DATA
    assert [entry.range for entry in site.log] == [None, "bytes=300000-", None]


def test_wrong_content_is_deleted(site, tmp_path):
    wrong = "0" * 64
    with pytest.raises(UsageError, match=f"SHA-256 {SHA256} instead of {wrong}"):
        fetch_url(f"{site.url}/a.bin", tmp_path / "a.bin", sha256=wrong)
    with pytest.raises(UsageError, match="length 1000000 instead of 5"):
        fetch_url(f"{site.url}/a.bin", tmp_path / "a.bin", size=5)
    assert not (tmp_path / "a.bin").exists()
    assert not (tmp_path / "a.bin.part").exists()
    (tmp_path / "a.bin").write_bytes(b"by hand, and not it")
    assert fetch_url(f"{site.url}/a.bin", tmp_path / "a.bin", sha256=SHA256).read_bytes() == DATA


def test_a_body_shorter_than_announced(site, tmp_path):
    site.always["/a.bin"] = {"headers": {"Content-Length": str(len(DATA) + 7)}, "ranges": False}
    with pytest.raises(UsageError, match="ended after 1000000 of 1000007 bytes"):
        fetch_url(f"{site.url}/a.bin", tmp_path / "a.bin", tries=2)
    assert not (tmp_path / "a.bin").exists()


def test_statuses(site, tmp_path):
    for status in (404, 403, 401):
        site.script.append(status)
        with pytest.raises(UsageError, match=f"/a.bin cannot be fetched: the server answers {status} .*put it at"):
            fetch_url(f"{site.url}/a.bin", tmp_path / "a.bin")
    assert len(site.log) == 3
    site.script.extend([500, 503, 429])
    assert fetch_url(f"{site.url}/a.bin", tmp_path / "a.bin").read_bytes() == DATA


def test_a_silent_server(site, tmp_path):
    site.script.append({"slow": 1.0})
    assert fetch_url(f"{site.url}/a.bin", tmp_path / "a.bin", timeout=0.3).read_bytes() == DATA
    assert site.log[1].range == "bytes=65536-"


def test_no_network(tmp_path, monkeypatch):
    monkeypatch.setattr(fetch, "_PAUSE", 0.01)
    monkeypatch.setenv("no_proxy", "*")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))  # bound, but nobody listens
        with pytest.raises(UsageError, match="in 2 tries .*check the network and the proxy.*put it at"):
            fetch_url(f"http://127.0.0.1:{free.getsockname()[1]}/a", tmp_path / "a", tries=2)


def test_a_name_that_is_not_known_is_asked_for_once(tmp_path, monkeypatch):
    """Without a network there is no address, and waiting does not help."""
    asked = []

    def lookup(*_, **__):
        asked.append(1)
        raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")

    monkeypatch.setattr(fetch, "_PAUSE", 0.01)
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(socket, "getaddrinfo", lookup)
    with pytest.raises(UsageError, match=r"/a could not be fetched \(no address for some\.host.*put it at"):
        fetch_url("https://some.host/a", tmp_path / "a")
    assert len(asked) == 1


@pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://127.0.0.1/a", "/etc/passwd", "data:,a"])
def test_only_the_web(site, tmp_path, url):
    with pytest.raises(UsageError, match="only http"):
        fetch_url(url, tmp_path / "a.bin")
    if ":" in url:
        site.always["/r"] = {"to": url}
        with pytest.raises(UsageError, match="(?i)redirect"):
            fetch_url(f"{site.url}/r", tmp_path / "a.bin")


def test_a_token_stays_at_its_host(site, tmp_path):
    site.always["/r"] = {"to": "/a.bin"}
    fetch_url(f"{site.url}/r", tmp_path / "a.bin", headers={"authorization": "Bearer x"})
    assert [entry.token for entry in site.log] == ["Bearer x", "Bearer x"]
    site.always["/r"] = {"to": site.url.replace("127.0.0.1", "localhost") + "/a.bin"}
    fetch_url(f"{site.url}/r", tmp_path / "b.bin", headers={"authorization": "Bearer x"})
    assert [entry.token for entry in site.log[2:]] == ["Bearer x", None]


def test_a_full_disk_keeps_the_part(site, tmp_path):
    code = """
import resource
resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, 400_000))
try:
    fetch_url(sys.argv[1], Path(sys.argv[2]))
except UsageError as error:
    print(error)
"""
    output, errors = python(code, f"{site.url}/a.bin", tmp_path / "a.bin").communicate()
    assert "no room for more" in output, errors
    assert "kept" in output
    assert (tmp_path / "a.bin.part").stat().st_size == 400_000
    assert fetch_url(f"{site.url}/a.bin", tmp_path / "a.bin").read_bytes() == DATA
    assert site.log[1].range == "bytes=400000-"


def test_too_little_room_is_known_before(site, tmp_path, monkeypatch):
    monkeypatch.setattr(fetch.shutil, "disk_usage", lambda path: SimpleNamespace(free=123))
    with pytest.raises(UsageError, match="1000000 bytes do not fit .* 123 are free"):
        fetch_url(f"{site.url}/a.bin", tmp_path / "a.bin")


# ---- fetch_hub

REPO, FILE = "some/sounds", "data/a.tar.gz"
FETCH_HUB = """
try:
    print(fetch_hub("some/sounds", "data/a.tar.gz", Path(sys.argv[1]) / "a.tar.gz"))
except UsageError as error:
    print("error:", error)
"""


@pytest.fixture
def hub(site):
    """The site as a hub: it answers as for large files there, with a redirect to the bytes."""
    site.files["/cdn/a"] = DATA
    announced = {"X-Repo-Commit": COMMIT, "X-Linked-Etag": f'"{SHA256}"', "X-Linked-Size": str(len(DATA))}
    for revision in ("main", COMMIT):
        # Another name for the same host: only to another host is a redirect not followed in asking for the ETag.
        elsewhere = site.url.replace("127.0.0.1", "localhost") + "/cdn/a"
        site.always[f"/datasets/{REPO}/resolve/{revision}/{FILE}"] = {"to": elsewhere, "headers": announced}
    return site


def ask_hub(hub, folder, **variables):
    environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_TOKEN": "hf_secret", "HF_HOME": str(folder / "home")}
    return python(FETCH_HUB, folder, env={**environment, **variables})


def test_hub(hub, tmp_path):
    hub.script.append({"cut": 300_000})
    output, errors = ask_hub(hub, tmp_path).communicate()
    assert output.strip() == str(tmp_path / "a.tar.gz"), output + errors
    assert (tmp_path / "a.tar.gz").read_bytes() == DATA
    assert [entry.range for entry in hub.gets() if entry.path == "/cdn/a"] == [None, "bytes=300000-"]
    assert {entry.token for entry in hub.log if entry.path.startswith("/datasets")} == {"Bearer hf_secret"}
    assert {entry.token for entry in hub.log if entry.path == "/cdn/a"} == {None}
    resolved = [entry.path for entry in hub.gets() if entry.path.startswith("/datasets")]
    assert resolved == [f"/datasets/{REPO}/resolve/{COMMIT}/{FILE}"] * 2
    assert not list(tmp_path.rglob("*.incomplete"))
    output, _ = ask_hub(hub, tmp_path).communicate()
    assert output.strip() == str(tmp_path / "a.tar.gz")
    assert len([entry for entry in hub.gets() if entry.path == "/cdn/a"]) == 2
    output, _ = ask_hub(hub, tmp_path, HF_HUB_OFFLINE="1").communicate()  # what is here needs no network
    assert output.strip() == str(tmp_path / "a.tar.gz")


def test_hub_killed_and_continued(hub, tmp_path):
    hub.script.append({"slow": 0.2})
    part = tmp_path / "a.tar.gz.part"
    process = ask_hub(hub, tmp_path)
    wait_for(lambda: part.exists() and part.stat().st_size >= 1 << 17, 20)
    process.kill()
    process.communicate()
    here = part.stat().st_size
    assert here < len(DATA)
    output, errors = ask_hub(hub, tmp_path).communicate()
    assert (tmp_path / "a.tar.gz").read_bytes() == DATA, output + errors
    assert hub.gets()[-1].range == f"bytes={here}-"


def test_hub_wrong_content(hub, tmp_path):
    hub.files["/cdn/a"] = DATA[::-1]
    output, _ = ask_hub(hub, tmp_path).communicate()
    assert "error:" in output
    assert f"instead of {SHA256}" in output
    assert not list(tmp_path.glob("a.tar.gz*"))
    for act in hub.always.values():
        act["headers"]["X-Linked-Etag"] = '"not a digest"'
    output, _ = ask_hub(hub, tmp_path).communicate()
    assert "announces no SHA-256" in output
    (tmp_path / "a.tar.gz").write_bytes(b"by hand")
    output, _ = ask_hub(hub, tmp_path).communicate()
    assert output.strip() == str(tmp_path / "a.tar.gz")


def test_hub_small_file(hub, tmp_path):
    """A file outside of the large file storage is checked against its git hash."""
    git = hashlib.sha1(b"blob %d\0" % len(DATA) + DATA).hexdigest()
    for act in hub.always.values():
        act["headers"]["X-Linked-Etag"] = f'"{git}"'
    output, errors = ask_hub(hub, tmp_path).communicate()
    assert output.strip() == str(tmp_path / "a.tar.gz"), errors
    (tmp_path / "a.tar.gz").unlink()
    hub.files["/cdn/a"] = DATA[::-1]
    output, _ = ask_hub(hub, tmp_path).communicate()
    assert "is not what the hub announces" in output
    assert not list(tmp_path.glob("a.tar.gz*"))


def test_hub_not_there_or_not_asked(hub, tmp_path):
    output, _ = ask_hub(hub, tmp_path, HF_HUB_OFFLINE="1").communicate()
    assert "error:" in output
    assert "HF_HUB_OFFLINE" in output
    assert not [entry for entry in hub.log if entry.path.startswith("/datasets")]
    hub.always.clear()
    output, _ = ask_hub(hub, tmp_path).communicate()
    assert "404" in output
    assert "HF_TOKEN" in output
    assert "put it at" in output


# ---- unpack


def make_tar(path, members, mode="w:gz"):
    """`members` are names with contents, or `TarInfo`s."""
    with tarfile.open(path, mode) as tar:
        for member in members:
            info, data = member if isinstance(member, tuple) else (member, b"")
            if isinstance(info, str):
                name, info = info, tarfile.TarInfo(info.rstrip("/"))
                info.size, info.mode = len(data), 0o7777
                if name.endswith("/"):
                    info.type = tarfile.DIRTYPE
            tar.addfile(info, io.BytesIO(data))
    return path


def make_zip(path, members):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for info, data in members:
            archive.writestr(info, data)
    return path


GOOD = [("top/", b""), ("top/a.wav", b"a" * 5000), ("top/sub/b.wav", b"b"), ("top/empty/", b"")]
JUNK = [("._top", b"x"), ("top/._a.wav", b"x"), ("top/.DS_Store", b"x"), ("__MACOSX/top/a.wav", b"x")]


def tree(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() if p.is_file() else None for p in folder.rglob("*")}


WHOLE = {"a.wav": b"a" * 5000, "sub": None, "sub/b.wav": b"b", "empty": None}


@pytest.mark.parametrize("kind", ["tar", "tar.gz", "zip"])
@pytest.mark.parametrize("inside", [None, "top"])
def test_unpack(tmp_path, kind, inside):
    members = [*GOOD, *JUNK] if inside is None else [*JUNK, *GOOD, ("other/c.wav", b"c")]
    path = tmp_path / "archive"
    made = make_zip(path, members) if kind == "zip" else make_tar(path, members, "w:gz" if "gz" in kind else "w")
    folder = unpack(made, tmp_path / "new" / "folder", inside=inside)
    assert tree(folder) == WHOLE
    assert [p.name for p in folder.parent.iterdir()] == ["folder"]
    assert stat.S_IMODE((folder / "a.wav").stat().st_mode) & 0o7111 == 0
    with pytest.raises(UsageError, match="exists already"):
        unpack(made, folder)


def test_unpack_keeps_several_tops(tmp_path):
    made = make_zip(tmp_path / "a.zip", [("x/a", b"1"), ("y", b"2")])
    assert tree(unpack(made, tmp_path / "out")) == {"x": None, "x/a": b"1", "y": b"2"}
    with pytest.raises(UnfitArchive, match=r"nothing below 'genres'; at its top: \['x', 'y'\]"):
        unpack(made, tmp_path / "out2", inside="genres")


def special(type_, name="top/evil", link=""):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = type_, link
    return info


def symlink_in_zip():
    info = zipfile.ZipInfo("top/evil")
    info.create_system, info.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
    return info


PATHS = ["/abs", "../up", "top/../../up", "C:/drive", "C:evil", "top\\back", "\\\\host\\share"]
EVIL_TAR = [
    *[("leads elsewhere", (name, b"x")) for name in PATHS],
    ("symbolic link", special(tarfile.SYMTYPE, link="a.wav")),
    ("symbolic link", special(tarfile.SYMTYPE, link="/etc")),
    ("hard link", special(tarfile.LNKTYPE, link="top/a.wav")),
    ("not a regular", special(tarfile.FIFOTYPE)),
    ("not a regular", special(tarfile.CHRTYPE)),
    ("not a regular", special(tarfile.BLKTYPE)),
    ("twice", ("top/a.wav", b"other")),
    ("twice", ("top/./a.wav", b"other")),
    ("twice", ("top/a.wav/x", b"other")),
    ("twice", ("top/a.wav/x/y", b"other")),
    ("twice", ("top/a.wav/", b"")),
    ("twice", ("top/sub", b"other")),
]
EVIL_ZIP = [
    *[("leads elsewhere", (name, b"x")) for name in PATHS],
    ("symbolic link", (symlink_in_zip(), b"/etc")),
    ("twice", ("top/A.wav".lower(), b"other")),
    ("twice", ("top/a.wav/x", b"other")),
]


def assert_refused(tmp_path, path, match, **keywords):
    with pytest.raises(UnfitArchive, match=match):
        unpack(path, tmp_path / "target" / "out", **keywords)
    assert not list((tmp_path / "target").iterdir())


@pytest.mark.parametrize(("match", "member"), EVIL_TAR)
def test_evil_tar(tmp_path, match, member):
    assert_refused(tmp_path, make_tar(tmp_path / "a", [*GOOD, member, ("top/z", b"z")]), match)


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize(("match", "member"), EVIL_ZIP)
def test_evil_zip(tmp_path, match, member):
    assert_refused(tmp_path, make_zip(tmp_path / "a", [*GOOD, member, ("top/z", b"z")]), match)


def test_evil_outside_of_what_is_taken(tmp_path):
    path = make_tar(tmp_path / "a", [*GOOD, ("/etc/cron.d/x", b"x")])
    assert_refused(tmp_path, path, "leads elsewhere", inside="top")


def test_encrypted_and_oddly_compressed_zip(tmp_path):
    path = make_zip(tmp_path / "a", [("a", b"x")])
    data = bytearray(path.read_bytes())
    data[data.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(data)
    assert_refused(tmp_path, path, "encrypted")
    with zipfile.ZipFile(path, "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr("a", b"x" * 100)
    assert_refused(tmp_path, path, "rare way")


def test_bombs(tmp_path):
    zeros = bytes(3_000_000)
    path = make_zip(tmp_path / "a.zip", [("a", zeros), ("b", b"")])
    assert_refused(tmp_path, path, "more than 1000000 bytes", limit=1e6)
    path = make_tar(tmp_path / "a.tar.gz", [("a", zeros)])
    assert_refused(tmp_path, path, "more than 1000000 bytes", limit=1e6)
    many = make_tar(tmp_path / "many", [(f"d/{i}", b"") for i in range(300)])
    assert_refused(tmp_path, many, "more than 1000000 bytes", limit=1e6)
    skipped = make_tar(tmp_path / "skipped", [("top/a", b"1"), *[(f"._{i}", bytes(600_000)) for i in range(2)]])
    assert_refused(tmp_path, skipped, "more than 1000000 bytes", limit=1e6)
    with gzip.open(tmp_path / "tail", "wb") as file:  # zeros after the end
        file.write(gzip.decompress(make_tar(tmp_path / "b", [("a", b"1")]).read_bytes()) + zeros)
    assert_refused(tmp_path, tmp_path / "tail", "more than 1000000 bytes", limit=1e6)


def test_a_zip_that_lies_about_its_size(tmp_path):
    path = make_zip(tmp_path / "a.zip", [("a", bytes(3_000_000))])
    data = bytearray(path.read_bytes())
    for mark, offset in ((b"PK\x01\x02", 24), (b"PK\x03\x04", 22)):
        at = data.index(mark) + offset
        data[at : at + 4] = (100).to_bytes(4, "little")
    path.write_bytes(data)
    assert_refused(tmp_path, path, "damaged", limit=1e6)


def test_a_tar_header_that_would_fill_the_memory(tmp_path):
    info = tarfile.TarInfo("././@LongLink")
    info.type, info.size = tarfile.GNUTYPE_LONGNAME, 1 << 33
    (tmp_path / "a").write_bytes(info.tobuf(tarfile.GNU_FORMAT) + bytes(10240))
    assert_refused(tmp_path, tmp_path / "a", "damaged.*header of 8589934592 bytes")
    nested = tarfile.TarInfo("././@LongLink")
    nested.type, nested.size = tarfile.GNUTYPE_LONGNAME, 2
    (tmp_path / "b").write_bytes((nested.tobuf(tarfile.GNU_FORMAT) + b"a\0" + bytes(510)) * 3000)
    assert_refused(tmp_path, tmp_path / "b", "damaged")


@pytest.mark.parametrize("kind", ["tar", "tar.gz", "zip"])
def test_truncated_anywhere(tmp_path, kind, rng):
    members = [("top/a", rng.bytes(3000)), ("top/b", rng.bytes(2000)), ("top/c", bytes(700))]
    path = tmp_path / "whole"
    made = make_zip(path, members) if kind == "zip" else make_tar(path, members, "w:gz" if "gz" in kind else "w")
    data = made.read_bytes()
    content = 512 * (1 + 6 + 1 + 4 + 1 + 2)  # of the plain tar: headers and blocks
    places = range(0, content, 512) if kind == "tar" else [0, 1, 2, 3, 20, 600, 3500, len(data) - 30, len(data) - 4]
    for place in [*places, len(data) - 1 if kind != "tar" else 700]:
        (tmp_path / "cut").write_bytes(data[:place])
        assert_refused(tmp_path, tmp_path / "cut", "damaged|nothing")
    unpack(made, tmp_path / "fine")


@pytest.mark.parametrize("kind", ["tar.gz", "zip", "tar"])
def test_flipped_bits(tmp_path, kind, rng):
    members = [(f"top/{i}", rng.bytes(3000)) for i in range(3)]
    path = tmp_path / "whole"
    made = make_zip(path, members) if kind == "zip" else make_tar(path, members, "w:gz" if "gz" in kind else "w")
    data = bytearray(made.read_bytes())
    # A tar has checksums in its headers only: the third's is hit, at which tarfile would just stop.
    place = data.index(b"top/2") if kind == "tar" else 5000
    data[place] ^= 0xFF
    made.write_bytes(data)
    assert_refused(tmp_path, made, "damaged")


def test_noise_never_does_harm(tmp_path, rng):
    whole = [make_tar(tmp_path / "t", GOOD, "w").read_bytes()[:6000], make_zip(tmp_path / "z", GOOD).read_bytes()]
    for turn in range(150):
        data = bytearray(whole[turn % 2])
        for place in rng.integers(0, len(data), 3):
            data[place] = rng.integers(256)
        (tmp_path / "noisy").write_bytes(data)
        (tmp_path / "x" / "target").mkdir(parents=True, exist_ok=True)
        try:
            unpack(tmp_path / "noisy", tmp_path / "x" / "target" / f"out{turn}", limit=1e6)
        except UsageError:
            assert not (tmp_path / "x" / "target" / f"out{turn}").exists()
        assert [p.name for p in (tmp_path / "x").iterdir()] == ["target"]
        assert not list((tmp_path / "x" / "target").glob(".*"))


def test_a_disk_full_of_what_was_unpacked(tmp_path, monkeypatch):
    make_tar(tmp_path / "a", [("top/a", b"1"), ("top/b", bytes(900_000))])
    code = """
import resource
resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, 400_000))
try:
    unpack(Path(sys.argv[1]), Path(sys.argv[2]))
except UsageError as error:
    print(error)
"""
    output, errors = python(code, tmp_path / "a", tmp_path / "target" / "out").communicate()
    assert "no room for more" in output, errors
    assert not list((tmp_path / "target").iterdir())
    make_zip(tmp_path / "b", [("top/b", bytes(900_000))])
    monkeypatch.setattr(archives.shutil, "disk_usage", lambda path: SimpleNamespace(free=123))
    for name, needed in (("a", 1), ("b", 904096)):
        with pytest.raises(UsageError, match=f"needs ({needed}|900000) bytes in .*, where 123 are free"):
            unpack(tmp_path / name, tmp_path / "target" / "out")
        assert not list((tmp_path / "target").iterdir())


# ---- install


def test_install(site, tmp_path):
    site.files["/a.zip"] = make_zip(tmp_path / "a.zip", [*GOOD, *JUNK]).read_bytes()
    site.script.append({"cut": 200})
    root = tmp_path / "data" / "set"
    seen = []

    def fetch(folder):
        return fetch_url(f"{site.url}/a.zip", folder / "a.zip")

    assert install(root, fetch, check=lambda folder: seen.append(tree(folder))) == root
    assert tree(root) == WHOLE
    assert seen == [WHOLE]
    assert [p.name for p in root.parent.iterdir()] == ["set"]
    assert install(root, lambda folder: pytest.fail("fetched again")) == root


def test_install_into_an_empty_folder_and_through_a_link(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    install(tmp_path / "link", lambda folder: make_tar(folder / "a", GOOD), inside="top")
    assert tree(tmp_path / "real") == WHOLE
    assert (tmp_path / "link").is_symlink()


def test_install_where_a_file_is(tmp_path):
    (tmp_path / "set").write_text("x")
    for root in (tmp_path / "set", tmp_path / "set" / "below"):
        with pytest.raises(UsageError, match="choose another folder"):
            install(root, lambda folder: pytest.fail("fetched"))
    assert [p.name for p in tmp_path.iterdir()] == ["set"]


def test_install_that_fails_leaves_what_helps(site, tmp_path):
    root = tmp_path / "data" / "set"

    def refuse(folder):
        raise UsageError("not the data set")

    with pytest.raises(UsageError, match="not the data set"):
        install(root, lambda folder: make_tar(folder / "a", GOOD), check=refuse)
    with pytest.raises(UnfitArchive, match="the download has been deleted"):
        install(root, lambda folder: make_tar(folder / "a", [("/abs", b"")]))
    with pytest.raises(UsageError, match="404"):
        install(root, lambda folder: fetch_url(f"{site.url}/none", folder / "none"))
    assert not list(root.parent.iterdir())
    site.script.append({"cut": 300_000})
    with pytest.raises(UsageError, match="tries"):
        install(root, lambda folder: fetch_url(f"{site.url}/a.bin", folder / "a.bin", tries=1))
    assert (root.parent / ".set.download" / "a.bin.part").stat().st_size == 300_000


def test_an_install_that_is_stopped_in_its_check_goes_on_there(tmp_path):
    def stop(folder):
        raise KeyboardInterrupt

    root = tmp_path / "set"
    with pytest.raises(KeyboardInterrupt):
        install(root, lambda folder: make_tar(folder / "a", GOOD), check=stop)
    assert not root.exists()
    install(root, lambda folder: pytest.fail("fetched again"), check=lambda folder: None)
    assert tree(root) == WHOLE
    assert [p.name for p in tmp_path.iterdir()] == ["set"]


INSTALL = """
def check(folder):
    with open(sys.argv[3], "a") as file:
        file.write("checked\\n")
install(Path(sys.argv[2]), lambda folder: fetch_url(sys.argv[1], folder / "a.tar.gz"), check=check)
print(sorted(p.name for p in Path(sys.argv[2]).iterdir()))
"""


def test_several_processes_install_once(site, tmp_path, rng):
    members = [*GOOD, ("top/noise", rng.bytes(400_000))]
    site.files["/a.tar.gz"] = make_tar(tmp_path / "a.tar.gz", members).read_bytes()
    site.always["/a.tar.gz"] = {"slow": 0.05}
    root = tmp_path / "data" / "set"
    processes = [python(INSTALL, f"{site.url}/a.tar.gz", root, tmp_path / "checks") for _ in range(3)]
    for process in processes:
        output, errors = process.communicate(timeout=30)
        assert output.strip() == "['a.wav', 'empty', 'noise', 'sub']", errors
    assert len(site.log) == 1
    assert (tmp_path / "checks").read_text() == "checked\n"
    assert [p.name for p in root.parent.iterdir()] == ["set"]


def test_an_install_that_is_killed_goes_on(site, tmp_path, rng):
    members = [*GOOD, ("top/noise", rng.bytes(900_000))]
    site.files["/a.tar.gz"] = make_tar(tmp_path / "a.tar.gz", members).read_bytes()
    site.script.append({"slow": 0.2})
    root = tmp_path / "data" / "set"
    process = python(INSTALL, f"{site.url}/a.tar.gz", root, tmp_path / "checks")
    part = root.parent / ".set.download" / "a.tar.gz.part"
    wait_for(lambda: part.exists() and part.stat().st_size >= 1 << 17)
    process.kill()
    process.communicate()
    assert not root.exists()
    install(root, lambda folder: fetch_url(f"{site.url}/a.tar.gz", folder / "a.tar.gz"))
    assert len(list(root.iterdir())) == 4
    assert site.log[1].range is not None
    assert [p.name for p in root.parent.iterdir()] == ["set"]


# ---- tree_digest


def test_tree_digest(tmp_path):
    (tmp_path / "audio").mkdir()
    for name in "ab":
        (tmp_path / "audio" / name).write_bytes(name.encode())
    lines = sorted(f"{hashlib.md5(name.encode()).hexdigest()}  audio/{name}\n" for name in "ab")
    expected = hashlib.sha256("".join(lines).encode()).hexdigest()
    assert tree_digest(tmp_path, ["audio/a", "audio/b"]) == tree_digest(tmp_path, ["audio/b", "audio/a"]) == expected
    (tmp_path / "audio" / "b").write_bytes(b"c")
    assert tree_digest(tmp_path, ["audio/a", "audio/b"]) != expected
    with pytest.raises(UsageError, match="audio/none cannot be read"):
        tree_digest(tmp_path, ["audio/none"])


def test_no_torch_is_imported():
    output, errors = python("print('torch' in sys.modules, 'huggingface_hub' in sys.modules)").communicate()
    assert output.split() == ["False", "False"], errors
