"""The service: answers of gafx predict, refusals with a sentence, nothing lost and nothing kept."""

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from broken_files import damaged

import gafx
from gafx import cli
from gafx.deploy import serve
from gafx.deploy.serve import app as app_module
from gafx.deploy.serve import receive as receive_module
from gafx.deploy.serve import server as server_module
from gafx.deploy.serve import worker as worker_module
from gafx.errors import UsageError

for package in ("fastapi", "uvicorn", "python_multipart"):
    pytest.importorskip(package, reason=f"{package} is not installed")

RATE = 22050
LABELS = ["blues", "<img src=x onerror=alert(2)>", "caf\udce9", "folk"]
LIMIT = 10**6
EDGE = b"gafx-test-boundary"


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    built = gafx.create_model(
        {"name": "gafx_r", "width": 16}, {"name": "ast", "depth": 1}, classes=LABELS, segment_seconds=1.0
    ).eval()
    with torch.no_grad():  # a new head gives nearly equal probabilities
        built.classifier.output.weight.mul_(30)
    return built


@pytest.fixture
def temporary(tmp_path_factory, monkeypatch):
    """The folder that the service makes its own folder in."""
    folder = tmp_path_factory.mktemp("temporary")
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    return folder


@pytest.fixture
def served(model, temporary):
    """A service on a free port: its address; nothing is left at the end."""
    with serve.opened(model, name="a <model>", max_bytes=LIMIT, max_seconds=20.0, device="cpu") as address:
        (folder,) = temporary.iterdir()
        assert folder.stat().st_mode & 0o077 == 0
        yield address
        assert not list(folder.iterdir())
    assert not list(temporary.iterdir())


@pytest.fixture
def sound(wav_factory, rng):
    return wav_factory("song $1.wav", (0.1 * rng.standard_normal(round(2.5 * RATE))).clip(-0.9, 0.9))


def ask(address, method, path, body=None, **headers):
    """Status, headers and decoded JSON (or text) of an answer."""
    connection = http.client.HTTPConnection(address.split("/")[2], timeout=60)
    try:
        connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
        response = connection.getresponse()
        text = response.read().decode("utf-8")
    finally:
        connection.close()
    is_json = response.headers.get("Content-Type") == "application/json"
    return response.status, response.headers, json.loads(text) if is_json and text else text


def form(content, name="a.wav", field="file", end=b"--"):
    head = f'--{EDGE.decode()}\r\nContent-Disposition: form-data; name="{field}"; filename="{name}"\r\n\r\n'.encode()
    return head + content + b"\r\n--" + EDGE + end + b"\r\n"


def post(address, body, query=""):
    return ask(address, "POST", f"/predict{query}", body, Content_Type=f"multipart/form-data; boundary={EDGE.decode()}")


# --- answers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("query", "options"), [("", []), ("?top=2&over_time=true", ["--top", "2", "--over-time"]), ("?top=0", [])]
)
def test_answers_are_those_of_gafx_predict(served, model, sound, tmp_path, query, options, capsys):
    saved = model.save(tmp_path / "model")
    cli.main(["predict", str(sound), "--model", str(saved), "--json", "--device", "cpu", *options])
    (expected,) = json.loads(capsys.readouterr().out)
    expected["file"] = "song $1.wav"
    status, headers, found = post(served, form(sound.read_bytes(), "C:\\music\\song $1.wav"), query)
    assert (status, headers["Content-Type"]) == (200, "application/json")
    assert found == expected  # to the last digit that is written
    assert list(found["probabilities"]) == list(expected["probabilities"])
    body = sound.read_bytes()
    status, _, raw = ask(served, "POST", f"/predict{query}", body, Content_Type="audio/wav")
    assert (status, raw) == (200, {**expected, "file": "upload"})


@pytest.mark.parametrize("seconds", [[0.0], [0.1, 0.0]])
def test_answers_hold_the_fields_of_the_schema(served, wav_factory, rng, seconds):
    """Of a silent file and of one with silent windows: no field is missing from the schema, none is told too much."""
    loud = [level * rng.standard_normal(3 * RATE) for level in seconds]
    file = wav_factory("a.wav", np.concatenate(loud).clip(-0.9, 0.9))
    schema = ask(served, "GET", "/openapi.json")[2]["paths"]["/predict"]["post"]["responses"]["200"]["content"]
    answer = schema["application/json"]["schema"]
    found = post(served, form(file.read_bytes()), "?over_time=true")[2]
    window = answer["properties"]["over_time"]["items"]
    for values, form_of in [(found, answer), *((one, window) for one in found["over_time"])]:
        assert set(form_of["required"]) <= set(values) <= set(form_of["properties"])
    assert ("silent" in found) == (seconds == [0.0])
    assert ("label" in found) == ("probabilities" in found) == (seconds != [0.0])


def test_answers_do_not_depend_on_other_requests(served, wav_factory, rng):
    files = [wav_factory(f"{n}.wav", 0.1 * rng.standard_normal(round((0.3 + 0.3 * n) * RATE))) for n in range(6)]
    alone = [post(served, form(file.read_bytes(), file.name))[2] for file in files]
    together = {}

    def client(file):
        together[file.name] = post(served, form(file.read_bytes(), file.name))[2]

    threads = [threading.Thread(target=client, args=(file,)) for file in files]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [together[file.name] for file in files] == alone


def test_state_and_model(served):
    assert ask(served, "GET", "/health")[2] == {
        "status": "ok", "model": "a <model>", "version": gafx.__version__, "requests": 0, "max_requests": 64,
    }  # fmt: skip
    for path in ("/health", "/model", "/docs"):  # health checks of other programs
        got, headed = (ask(served, method, path) for method in ("GET", "HEAD"))
        assert headed[0] == 200
        assert headed[1]["Content-Length"] == got[1]["Content-Length"]
    found = ask(served, "GET", "/model")[2]
    assert found.pop("labels") == LABELS
    assert found == {
        "model": "a <model>", "sample_rate": 22050, "channels": 1, "window_seconds": 1.0, "sums_to_one": True,
        "calibrated": False, "max_bytes": LIMIT, "max_seconds": 20.0,
    }  # fmt: skip


def test_the_page_and_the_schema(served):
    schema = ask(served, "GET", "/openapi.json")[2]
    predict = schema["paths"]["/predict"]["post"]
    assert {one["name"] for one in predict["parameters"]} == {"top", "over_time"}
    assert {"200", "400", "408", "413", "415", "422", "500", "503"} <= set(predict["responses"])
    assert set(schema["paths"]) == {"/predict", "/health", "/model"}
    status, headers, page = ask(served, "GET", "/docs")
    assert (status, headers["Content-Type"]) == (200, "text/html; charset=utf-8")
    assert "a &lt;model&gt;" in page
    assert "<img src=x" not in page
    assert not re.search(r"<script|(?:src|href)=\"?(?:https?:)?//", page)
    for path in schema["paths"]:
        assert f" {path}</h2>" in page
    fields = predict["responses"]["200"]["content"]["application/json"]["schema"]["properties"]
    for name, field in fields.items():
        assert re.search(rf">{name}</th><td>[a-z ]+</td><td>{re.escape(field['description'])}</td>", page), name
    assert ask(served, "GET", "/")[1]["Location"] == "docs"


# --- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "status", "message"),
    [
        ("archive.wav", 422, "archive.wav cannot be decoded"),
        ("text.mp3", 422, "text.mp3 cannot be decoded"),
        ("empty.wav", 422, "empty.wav is empty (0 bytes)"),
        ("long.wav", 413, "long.wav lasts 21 s, and this service takes at most 20 s: cut it"),
        ("none.wav", 422, "none.wav holds no samples"),
        ("cut.wav", 422, "cut.wav is truncated"),
        ("nan.wav", 422, "nan.wav holds NaN"),
    ],
)
def test_files_that_cannot_be_labelled(served, temporary, name, status, message, tmp_path, wav_factory):
    path = damaged(name, tmp_path, wav_factory)
    found = post(served, form(path.read_bytes(), name))
    assert found[0] == status
    assert found[2]["error"].startswith(message)
    assert set(found[2]) == {"error"}
    assert str(temporary) not in found[2]["error"]


FORM = f"multipart/form-data; boundary={EDGE.decode()}"


@pytest.mark.parametrize(
    ("body", "kind", "query", "status", "message"),
    [
        (b"RIFF", "application/x-www-form-urlencoded", "", 415, "the Content-Type is application/x-www-form"),
        (b"RIFF", "", "", 415, "the Content-Type is missing: send a form"),
        (b"RIFF", "video/mp4", "", 422, "upload cannot be decoded"),
        (b"RIFF", "multipart/form-data", "", 400, "the form has no boundary"),
        (b"nonsense", FORM, "", 400, "the form is damaged or incomplete"),
        (form(b"RIFF", end=b""), FORM, "", 400, "the form is damaged or incomplete"),
        (form(b"RIFF", field="sound"), FORM, "", 422, "the form has no file in the field 'file'"),
        (form(b"RIFF", end=b"") + form(b"RIFF").partition(b"\r\n")[2], FORM, "", 422, "the form has several files"),
        (form(bytes(70_000), field="sound"), FORM, "", 413, "the form has too much besides the file"),
        (b"RIFF", "audio/wav", "?top=-1", 422, "top=-1: input should be greater than or equal to 0"),
        (b"RIFF", "audio/wav", "?top=1&top=2", 422, "top is given several times: give it once"),
        (b"RIFF", "audio/wav", "?overtime=1", 422, "unknown parameter 'overtime': choose from top, over_time; did you"),
    ],
)
def test_requests_that_are_not_understood(served, body, kind, query, status, message, caplog):
    found = ask(served, "POST", f"/predict{query}", body, Content_Type=kind)
    assert found[0] == status
    assert found[2]["error"].startswith(message)
    if status == 415:
        assert "audio/..., video/..., application/ogg or application/octet-stream" in found[2]["error"]
    assert not caplog.records  # the client is told, not the log


def test_what_is_no_http_is_refused_in_json(served):
    host, port = served.split("/")[2].split(":")
    with socket.create_connection((host, int(port)), timeout=30) as connection:
        connection.sendall(b"nonsense\r\n\r\n")
        response = http.client.HTTPResponse(connection)
        response.begin()
        assert (response.status, response.headers["Content-Type"]) == (400, "application/json")
        assert json.loads(response.read())["error"].startswith("the request is no valid HTTP")


def test_other_paths(served):
    assert ask(served, "GET", "/secret")[::2] == (404, {"error": "GET /secret is not offered: see /docs"})
    assert ask(served, "GET", "/predict")[::2] == (405, {"error": "GET /predict is not offered: see /docs"})


@pytest.mark.parametrize("as_form", [True, False])
@pytest.mark.parametrize("chunked", [True, False])
def test_too_many_bytes_are_refused_while_they_arrive(served, temporary, as_form, chunked):
    """Without a length beforehand too; the folder never holds more than the limit."""
    total = 50 * LIMIT
    kind = FORM if as_form else "audio/wav"
    head = b"" if not as_form else form(b"").partition(b"\r\n\r\n")[0] + b"\r\n\r\n"
    host = served.split("/")[2].split(":")
    with socket.create_connection((host[0], int(host[1])), timeout=30) as connection:
        length = b"Transfer-Encoding: chunked" if chunked else b"Content-Length: %d" % total
        connection.sendall(
            b"POST /predict HTTP/1.1\r\nHost: a\r\nContent-Type: " + kind.encode() + b"\r\n" + length + b"\r\n\r\n"
        )
        block = bytes(100_000)
        for count in range(20):  # a fraction of what was announced
            data = head + block if not count else block
            connection.sendall(b"%x\r\n%b\r\n" % (len(data), data) if chunked else data)
            (folder,) = temporary.iterdir()
            assert sum(path.stat().st_size for path in folder.iterdir()) <= LIMIT
        response = http.client.HTTPResponse(connection)
        response.begin()
        assert response.status == 413
        answer = response.read().decode()
    name = {(True, True): "a.wav has more than 1.0 MB", (False, True): "upload has more than 1.0 MB"}
    assert name.get((as_form, chunked), "the upload has 5") in answer


def test_a_file_at_the_limit_is_taken(served, wav_factory):
    path = wav_factory("a.wav", 0.1 * np.ones((LIMIT - 44) // 2), 44100)
    assert path.stat().st_size == LIMIT
    assert post(served, form(path.read_bytes()))[0] == 200
    status, _, found = post(served, form(path.read_bytes() + b"\0"))
    assert status == 413
    assert "a.wav has more than 1.0 MB" in found["error"]


def test_faults_are_logged_and_not_told(served, sound, monkeypatch, caplog, temporary):
    def fail(*_, **__):
        raise RuntimeError("a fault of ours")

    monkeypatch.setattr(worker_module, "predict_files", fail)
    status, _, found = post(served, form(sound.read_bytes()))
    assert (status, found) == (500, {"error": "an internal error occurred: the log of the service shows it"})
    assert "a fault of ours" in caplog.text
    monkeypatch.setattr(worker_module, "predict_files", lambda *_, **__: (_ for _ in ()).throw(MemoryError))
    status, _, found = post(served, form(sound.read_bytes()))
    assert (status, found) == (413, {"error": "a.wav takes more memory than there is: try a shorter file"})


# --- load -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def held(monkeypatch):
    """Holds the computing thread until it is set."""
    gate = threading.Event()
    real = worker_module.predict_files

    def later(*arguments, **options):
        gate.wait(60)
        return real(*arguments, **options)

    monkeypatch.setattr(worker_module, "predict_files", later)
    yield gate
    gate.set()


def until(condition):
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_two_hundred_at_once(model, temporary, sound, held):
    """Each gets an answer or is told to come back; nobody is lost."""
    body, found, lock = form(sound.read_bytes()), [], threading.Lock()

    def client():
        status, headers, answer = post(address, body)
        with lock:
            found.append((status, headers.get("Retry-After"), answer))

    with serve.opened(model, device="cpu", max_requests=16) as address:
        threads = [threading.Thread(target=client) for _ in range(200)]
        for thread in threads:
            thread.start()
        until(lambda: len(found) == 184)
        assert ask(address, "GET", "/health")[2]["requests"] == 16
        (folder,) = temporary.iterdir()
        until(lambda: len(list(folder.iterdir())) == 16)
        held.set()
        for thread in threads:
            thread.join()
        until(lambda: not list(folder.iterdir()))
        assert ask(address, "GET", "/health")[2]["requests"] == 0
        assert post(address, body)[0] == 200
    assert Counter(status for status, *_ in found) == {200: 16, 503: 184}
    for status, wait, answer in found:
        if status == 503:
            assert int(wait) >= 1
            assert re.fullmatch(r"16 requests wait already: ask again in [\d.]+ s", answer["error"])
    assert len({json.dumps(answer) for status, _, answer in found if status == 200}) == 1


def test_clients_that_go_give_up_their_place(model, temporary, sound, held):
    with serve.opened(model, device="cpu", max_requests=4) as address:
        host = address.split("/")[2].split(":")
        body = form(sound.read_bytes())
        head = f"POST /predict HTTP/1.1\r\nHost: a\r\nContent-Type: {FORM}\r\nContent-Length: {len(body)}\r\n\r\n"
        connections = []
        for length in (len(body), len(body), len(body), 1000):  # the last one goes while it sends
            connections.append(socket.create_connection((host[0], int(host[1]))))
            connections[-1].sendall(head.encode() + body[:length])
        until(lambda: ask(address, "GET", "/health")[2]["requests"] == 4)
        for connection in connections:
            connection.close()
        until(lambda: ask(address, "GET", "/health")[2]["requests"] == 0)
        held.set()
        assert post(address, body)[0] == 200
        (folder,) = temporary.iterdir()
        until(lambda: not list(folder.iterdir()))


def test_slow_clients_are_sent_away(model, temporary, monkeypatch):
    monkeypatch.setattr(receive_module, "IDLE_SECONDS", 0.3)
    monkeypatch.setattr(receive_module, "UPLOAD_SECONDS", 1.0)
    monkeypatch.setattr(server_module, "STALLED_SECONDS", 0.3)
    with serve.opened(model, device="cpu") as address:
        host = address.split("/")[2].split(":")

        def opened(text):
            connection = socket.create_connection((host[0], int(host[1])), timeout=10)
            connection.sendall(text)
            return connection

        head = b"POST /predict HTTP/1.1\r\nHost: a\r\nContent-Type: audio/wav\r\nContent-Length: 1000\r\n\r\n"
        with opened(b"") as silent, opened(b"GET /health HTTP/1.1\r\nHost:") as half, opened(head + b"RIFF") as stopped:
            assert stopped.recv(4096).startswith(b"HTTP/1.1 408 ")
            for connection in (silent, half):
                with suppress(ConnectionResetError):
                    assert connection.recv(4096) == b""
        with opened(head) as dripping:  # within the pause, but without end
            begin = time.monotonic()
            for _ in range(100):
                try:
                    dripping.sendall(b"a")
                except OSError:
                    break
                time.sleep(0.1)
            assert time.monotonic() - begin < 5
        until(lambda: ask(address, "GET", "/health")[2]["requests"] == 0)


def test_the_end_refuses_what_waits(model, sound, held, monkeypatch):
    monkeypatch.setattr(server_module, "_GRACE_SECONDS", 0.2)
    found = []
    with serve.opened(model, device="cpu") as address:
        threads = [
            threading.Thread(target=lambda: found.append(post(address, form(sound.read_bytes())))) for _ in range(3)
        ]
        threads[0].start()
        until(lambda: ask(address, "GET", "/health")[2]["requests"] == 1)
        for thread in threads[1:]:
            thread.start()
        until(lambda: ask(address, "GET", "/health")[2]["requests"] == 3)
        threading.Timer(0.5, held.set).start()
    for thread in threads:
        thread.join()
    assert Counter(status for status, *_ in found) in ({200: 1, 503: 2}, {503: 3})  # the first one was begun
    for status, headers, answer in found:
        if status == 503:
            assert headers["Retry-After"]
            assert answer["error"].startswith("the service is ending")


# --- the command ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "output"),
    [(["--port", "70000"], "--port 70000"), (["--max-mb", "0"], "--max-mb 0"), (["--max-seconds", "inf"], "inf")],
)
def test_invalid_options(arguments, output, tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(["serve", "--model", str(tmp_path), *arguments])
    assert ended.value.code == 2
    assert output in capsys.readouterr().err


def test_the_command_passes_its_options(model, tmp_path, monkeypatch, capsys):
    asked = {}
    monkeypatch.setattr(serve, "serve", lambda model, **arguments: asked.update(arguments))
    folder = model.save(tmp_path / "song-1a2b" / "model")
    cli.main(["serve", "--model", str(folder.parent), "--max-mb", "2", "--host", "0.0.0.0"])
    asked.pop("ready")
    assert asked == {
        "name": "song-1a2b", "host": "0.0.0.0", "port": 8000, "max_bytes": 2_000_000, "max_seconds": 1200.0,
        "device": "auto",
    }  # fmt: skip
    assert "use the service: there is no password" in capsys.readouterr().err


def test_ports_and_limits_that_cannot_be(model):
    with (
        serve.opened(model, device="cpu") as address,
        pytest.raises(UsageError, match="choose another --port"),
        serve.opened(model, port=int(address.rstrip("/").rpartition(":")[2])),
    ):
        pass
    for options in ({"max_bytes": 0}, {"max_seconds": 0.0}, {"max_requests": 0}):
        with pytest.raises(UsageError, match=next(iter(options))), serve.opened(model, **options):
            pass


def test_a_missing_package(model, monkeypatch):
    monkeypatch.setitem(sys.modules, "fastapi", None)
    with pytest.raises(UsageError, match=r"gafx serve needs fastapi: pip install 'gafx\[serve\]'"):
        serve.check_packages()


@pytest.mark.slow
def test_the_command_ends_cleanly_and_leaves_nothing(model, tmp_path, sound):
    (tmp_path / "temporary").mkdir()
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "gafx.cli", "serve", "--model", str(model.save(tmp_path / "model"))]
    process = subprocess.Popen(
        [*command, "--port", str(port)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "TMPDIR": str(tmp_path / "temporary"), "PYTHONUNBUFFERED": "1"},
    )  # fmt: skip
    try:
        output = process.stdout.readline()
        assert output == f"http://127.0.0.1:{port}/  (Ctrl-C ends it)\n", output + process.stderr.read()
        assert post(f"http://127.0.0.1:{port}/", form(sound.read_bytes()))[0] == 200
        slow = socket.create_connection(("127.0.0.1", port))
        slow.sendall(
            b"POST /predict HTTP/1.1\r\nHost: a\r\nContent-Type: audio/wav\r\nContent-Length: 1000\r\n\r\nRIFF"
        )
        time.sleep(0.2)
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=60)
        assert slow.recv(4096).startswith(b"HTTP/1.1 503 ")
        slow.close()
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 0, errors
    assert "Traceback" not in errors
    assert errors.endswith("the service has ended; nothing was kept\n")
    assert not list(Path(tmp_path / "temporary").iterdir())


@pytest.mark.slow
def test_a_browser_labels_a_file(browser, served, sound):
    page = browser.new_page()
    asked, wrong = [], []
    page.on("request", lambda request: asked.append(request.url))
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.goto(f"{served}docs")
    page.set_input_files("input[type=file]", sound)
    page.click("button")
    page.wait_for_url("**/predict?top=5")
    assert json.loads(page.inner_text("body"))["file"] == "song $1.wav"
    page.close()
    assert not wrong
    assert all(url.startswith(served) for url in asked)
    assert app_module.MAX_REQUESTS == 64  # as in docs/serve.md
