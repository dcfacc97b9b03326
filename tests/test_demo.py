"""The demo: answers to uploads of all kinds, that nothing is kept, limits, and the page in a browser."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
import uuid
import zipfile

import numpy as np
import pytest
import torch
from broken_files import damaged

import gafx
from gafx import cli
from gafx.commands.options import model_name
from gafx.deploy import demo
from gafx.deploy.demo import page as page_module
from gafx.deploy.uploads import warn_of_host
from gafx.errors import UsageError
from gafx.report.format import METRICS, escape, label, lowered, probability, score

pytest.importorskip("gradio", reason="gradio is not installed")

RATE = 22050
LABELS = ["blues", "${alert(1)}", "<img src=x onerror=alert(2)>", "caf\udce9", "{{value}}", "folk", "funk", "dub"]
LIMIT = 10**6


def build(labels=LABELS):
    torch.manual_seed(0)
    return gafx.create_model(
        {"name": "gafx_r", "width": 16}, {"name": "ast", "depth": 1}, classes=labels, segment_seconds=1.0
    ).eval()


@pytest.fixture(scope="module")
def model():
    return build()


@pytest.fixture(scope="module")
def page(model):
    return demo.Page(model, name="a <model>", max_bytes=LIMIT, max_seconds=20.0, device="cpu")


@pytest.fixture
def sound(wav_factory, rng):
    """A wav of 2.5 s in a separate folder, as for an upload."""
    return wav_factory("hash/song_$1.wav", (0.1 * rng.standard_normal(round(2.5 * RATE))).clip(-0.9, 0.9))


# --- answers ----------------------------------------------------------------------------------------------------------


def test_an_answer_shows_all_and_keeps_nothing(page, model, sound, tmp_path):
    (expected,) = page_module.predict_files(page.probabilities, [sound], over_time=True, device="cpu")
    output = []
    answer = page.answer(str(sound), progress=lambda done, step: output.append((done, step)))
    name, value = expected.top(1)[0]
    assert f"<h2>{escape(name)} <span>{probability(value)}</span></h2>".replace("&#x27;", "&#39;") in answer
    assert f"song_$1.wav</span>, 2.5 s, {len(expected.windows)} windows of 1 s" in answer
    assert re.findall(r'gafx-value">([^<]+)<', answer) == [probability(value) for _, value in expected.top()]
    assert answer.count("data:image/webp;base64,") == 2  # for light and for dark pages
    assert "not calibrated" in answer
    assert "sum to 100 %" in answer
    assert "<img src=x" not in answer
    assert output[0][1] == "reading"
    assert sorted(output) == output
    assert not any(tmp_path.rglob("*.*"))
    assert not sound.parent.exists()


def test_explanations_of_probabilities(model, sound, tmp_path):
    tags = build()
    tags.info.objective = "tag"
    tags.info.calibration = {"temperature": 1.5, "tracks": 80, "part": "validation"}
    answer = demo.Page(tags, device="cpu").answer(str(sound), narrow=True)
    assert "Each label has a probability of its own" in answer
    assert "calibrated (temperature 1.5, fitted on 80 validation tracks)" in answer


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("archive.wav", "archive.wav cannot be decoded"),
        ("text.wav", "text.wav cannot be decoded"),
        ("text.mp3", "text.mp3 cannot be decoded"),
        ("empty.wav", "empty.wav is empty (0 bytes)"),
        ("large.wav", "large.wav has 1.07 GB, and this page takes at most 1.0 MB: cut it"),
        ("long.wav", "long.wav lasts 21 s, and this page takes at most 20 s: cut it"),
        ("short.wav", "short.wav is too short"),
        ("none.wav", "none.wav holds no samples"),
        (
            "silent.wav",
            "silent.wav is silent (-inf dBFS): choose another file, or check that the mic",
        ),
        ("cut.wav", "cut.wav is truncated"),
        ("nan.wav", "nan.wav holds NaN"),
    ],
)
def test_files_that_cannot_be_labelled(page, name, message, tmp_path, wav_factory, capfd):
    path = damaged(name, tmp_path, wav_factory)
    answer = page.answer(str(path))
    assert answer.startswith('<div class="gafx gafx-refusal" role="alert">')
    text = re.sub("<[^>]+>", "", answer)
    assert text.startswith(message)
    assert text.endswith(".")
    assert str(tmp_path) not in answer
    assert not path.parent.exists()
    assert "Traceback" not in capfd.readouterr().err


def test_uploads_that_never_came(page, tmp_path):
    assert "Nothing arrived" in page.answer(None)
    assert "gone.wav does not exist" in page.answer(str(tmp_path / "gone.wav"))


def test_no_memory_is_a_sentence_and_other_faults_are_raised(page, sound, monkeypatch):
    def fail(error):
        def observe(*_, **__):
            raise error

        return observe

    monkeypatch.setattr(page_module.plot, "observe", fail(RuntimeError("CUDA out of memory")))
    assert "takes more memory than there is" in page.answer(str(sound))
    assert not sound.exists()
    sound.parent.mkdir()
    shutil.copy(_second(sound), sound)
    monkeypatch.setattr(page_module.plot, "observe", fail(RuntimeError("a fault of ours")))
    with pytest.raises(RuntimeError, match="of ours"):
        page.answer(str(sound))
    assert not sound.exists()


def _second(sound):
    import soundfile

    path = sound.parents[1] / "second.wav"
    soundfile.write(path, 0.1 * np.sin(np.arange(RATE)), RATE)
    return path


def test_one_computation_at_a_time(page, sound, monkeypatch):
    inside, most = [], []

    def slow(path, say):
        inside.append(path)
        most.append(len(inside))
        time.sleep(0.05)
        inside.remove(path)
        raise UsageError("enough")

    monkeypatch.setattr(page, "_label", slow)
    threads = [threading.Thread(target=page.answer, args=(f"{sound}{number}",)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1, 1, 1, 1]


def test_a_page_that_ends_stops_what_it_computes(model, wav_factory):
    page = demo.Page(model, device="cpu")
    path = wav_factory("long.wav", 0.1 * np.sin(np.arange(60 * RATE)))
    answers, begun = [], threading.Event()
    thread = threading.Thread(
        target=lambda: answers.append(page.answer(str(path), progress=lambda *_: begun.set()))
    )  # fmt: skip
    thread.start()
    assert begun.wait(30)
    page.close()
    assert answers or not page._busy.locked()
    thread.join(30)
    assert "has ended" in answers[0]
    assert not path.exists()
    assert "has ended" in page.answer(str(path))


# --- the head ---------------------------------------------------------------------------------------------------------


def test_the_head_describes_the_model(page):
    head = page.head()
    assert "<h1>a &lt;model&gt;</h1>" in head
    for part in (
        "blues, ${alert(1)}, &lt;img src=x",
        "front-end gafx_r, classifier ast",
        "not recorded",
        "Wav, flac, ogg, opus, mp3 or au, up to 1.0 MB and 20 s.",
    ):
        assert part in head
    assert "<dt>Scores</dt><dd>not evaluated</dd>" in head


def test_the_head_has_scores_with_their_protocol():
    known = build([str(number) for number in range(40)])
    known.info.training = {"data": "gtzan", "protocol": "kfold", "fold": 2}
    known.info.scores = {"accuracy": {"value": 0.65, "low": 0.43, "high": 0.82}, "loss": {"value": 1.25}}
    known.info.evaluated_on = {"data": "gtzan", "protocol": "kfold", "part": "test", "tracks": 20, "fold": 2}
    head = demo.Page(known).head()
    assert "gtzan, protocol kfold, fold 2" in head
    assert "accuracy 65.0 % (43.0 to 82.0); loss 1.250; on 20 tracks of the test part of gtzan, protocol kfold" in head
    assert "<summary>40 labels</summary>" in head


@pytest.mark.parametrize("name", METRICS)
def test_scores_are_formatted_as_in_the_report(name):
    found = {"value": 0.335, "low": 0.247, "high": 0.412}
    text = page_module.describe_scores({name: found}, {"data": "esc", "protocol": "official", "tracks": 1})
    assert text.startswith(f"{lowered(label(name))} {score(found, name)}; on 1 track of the test part of esc")
    if name == "macro_f1":
        assert "macro-F1 33.5 % (24.7 to 41.2); on" in text


def test_a_file_just_over_the_limit_is_told_in_bytes(page, tmp_path):
    path = tmp_path / "over.wav"
    path.write_bytes(bytes(LIMIT + 1))
    assert "over.wav has 1,000,001 bytes, and this page takes at most 1.0 MB" in page.answer(str(path))


# A browser's document in as much as the page's script uses it; each file is dropped into the field in turn.
BROWSER = """
const handlers = {}, note = {}, window = {}, answer = {style: {}};
const document = {
  addEventListener: (kind, handler) => { (handlers[kind] ||= []).push(handler); },
  getElementById: () => note, querySelector: () => answer,
};
const URL = {createObjectURL: () => 'blob:', revokeObjectURL: () => {}};
(SCRIPT)();
const target = {closest: () => true, matches: () => false};
const dropped = (files) => {
  const event = {target, dataTransfer: {files}, preventDefault: () => {}, stopImmediatePropagation: () => {}};
  for (const handler of handlers.drop) handler(event);
  return note.textContent;
};
console.log(JSON.stringify(FILES.map(dropped)));
"""


def test_the_browser_refuses_files_with_the_servers_sentences(page, tmp_path):
    program = shutil.which("node")
    if program is None:
        pytest.skip("no node on this machine")
    counts = [LIMIT + 1, LIMIT + 60_000, 50_260_000, 10**9, 1_073_741_824]
    files = [[{"name": f"{{size}}{count}.wav", "size": count, "type": "audio/wav"}] for count in counts]
    expected = []
    for (file,) in files:
        path = tmp_path / "upload" / file["name"]
        path.parent.mkdir()
        with path.open("wb") as out:
            out.truncate(file["size"])
        expected.append(re.sub("<[^>]+>", "", page.answer(str(path))))
    fine = {"name": "a.wav", "size": LIMIT, "type": "audio/wav"}
    files += [[fine], [fine, fine, fine], [{**fine, "size": 0}], [{**fine, "type": "application/zip"}]]
    program_text = BROWSER.replace("SCRIPT", page.script()).replace("FILES", json.dumps(files))
    done = subprocess.run([program, "-e", program_text], capture_output=True, check=True)
    output = json.loads(done.stdout)
    assert output[: len(counts)] == expected
    assert output[0].startswith("{size}1000001.wav has 1,000,001 bytes, and this page takes at most 1.0 MB: cut it")
    assert output[len(counts) :] == [
        "", "One file at a time, please: a.wav and 2 more were dropped.",
        "a.wav is empty (0 bytes): choose another file.",
        "a.wav is not an audio file: drop a wav, flac, ogg, opus or mp3; unpack archives first.",
    ]  # fmt: skip


# --- limits and the command line --------------------------------------------------------------------------------------


@pytest.mark.parametrize("more", [{"max_bytes": 0}, {"max_seconds": 0.0}, {"max_seconds": float("nan")}])
def test_limits_that_admit_no_file(model, more):
    with pytest.raises(UsageError, match=next(iter(more))):
        demo.Page(model, **more)


@pytest.mark.parametrize(
    ("arguments", "output"),
    [
        (["--port", "0"], "--port 0"),
        (["--port", "70000"], "--port 70000"),
        (["--max-mb", "0"], "--max-mb 0"),
        (["--max-mb", "nan"], "--max-mb nan"),
        (["--max-seconds", "-1"], "--max-seconds -1"),
        (["--max-seconds", "inf"], "--max-seconds inf"),
    ],
)
def test_invalid_options_of_the_command(arguments, output, tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(["demo", "--model", str(tmp_path), *arguments])
    assert ended.value.code == 2
    assert output in capsys.readouterr().err


def test_the_command_passes_its_options(model, tmp_path, monkeypatch, capsys):
    asked = {}
    monkeypatch.setattr(demo, "serve", lambda model, **arguments: asked.update(arguments))
    folder = model.save(tmp_path / "song-1a2b" / "model")
    cli.main(["demo", "--model", str(folder.parent), "--max-mb", "2", "--max-seconds", "30", "--host", "0.0.0.0"])
    asked.pop("ready")
    assert asked == {
        "name": "song-1a2b", "host": "0.0.0.0", "port": None, "max_bytes": 2_000_000, "max_seconds": 30.0,
        "device": "auto",
    }  # fmt: skip
    assert "lets everybody who can reach this machine" in capsys.readouterr().err
    warn_of_host("127.0.0.1")
    assert not capsys.readouterr().err
    assert model_name(str(folder)) == "song-1a2b"
    assert model_name("owner/name") == "owner/name"


def test_without_gradio(model, monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(UsageError, match=r"gafx\[demo\]"):
        demo.build(model)


# --- a server ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def served(model):
    """The demo on a free port: its address and the folder of uploads."""
    with demo.private_folder() as folder, demo.opened(model, max_bytes=LIMIT, max_seconds=20.0) as address:
        yield address, folder
    assert not folder.exists()
    assert "GRADIO_TEMP_DIR" not in os.environ


def ask(url, body=None, kind="application/json"):
    """Status, headers and body of an answer, whatever it is."""
    request = urllib.request.Request(url, body, {"Content-Type": kind} if body is not None else {})
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=30) as response:
            return response.status, response.headers, response.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.headers, error.read()


def upload(address, content, name="a.wav"):
    edge = uuid.uuid4().hex
    body = f'--{edge}\r\nContent-Disposition: form-data; name="files"; filename="{name}"\r\n\r\n'.encode()
    kind = f"multipart/form-data; boundary={edge}"
    return ask(f"{address}gradio_api/upload", body + content + f"\r\n--{edge}--\r\n".encode(), kind)


def files_in(folder):
    return [path for path in folder.rglob("*") if path.is_file()]


def test_only_this_machine_is_served(served):
    address, folder = served
    assert re.fullmatch(r"http://127\.0\.0\.1:\d+/", address)
    port = int(address.rstrip("/").rpartition(":")[2])
    with pytest.raises(OSError), socket.create_connection(("127.0.0.2", port), timeout=2):  # noqa: PT011
        pass
    assert folder.stat().st_mode & 0o077 == 0
    status, headers, _ = ask(address)
    assert status == 200
    assert "default-src 'self'" in headers["content-security-policy"]
    assert "http:" not in headers["content-security-policy"]
    config = json.loads(ask(f"{address}config")[2])
    assert config["analytics_enabled"] is False
    assert {entry["api_visibility"] for entry in config["dependencies"]} == {"private"}


def test_a_port_that_is_taken(served, model):
    port = int(served[0].rstrip("/").rpartition(":")[2])
    with pytest.raises(UsageError, match=f"port {port}"), demo.opened(model, port=port):
        pass


def test_the_server_takes_no_large_upload(served):
    address, folder = served
    status, _, body = upload(address, bytes(LIMIT + 1))
    assert status == 413
    assert str(LIMIT) in body.decode()
    assert not files_in(folder)


def test_the_server_reads_no_other_files(served, tmp_path):
    address, _ = served
    secret = tmp_path / "secret.wav"
    secret.write_bytes(b"secret")
    assert ask(f"{address}gradio_api/file={secret}")[0] in (403, 404)
    config = json.loads(ask(f"{address}config")[2])
    label = next(entry["id"] for entry in config["dependencies"] if len(entry["inputs"]) == 2)
    given = {"path": str(secret), "meta": {"_type": "gradio.FileData"}}
    body = json.dumps({"data": [given, 1000], "fn_index": label, "session_hash": "a"}).encode()
    assert ask(f"{address}gradio_api/queue/join", body)[0] == 200
    answer = ask(f"{address}gradio_api/queue/data?session_hash=a")[2].decode()
    assert '"success":false' in answer
    assert secret.exists()


def test_an_upload_is_answered_and_gone(served, sound):
    address, folder = served
    status, _, body = upload(address, sound.read_bytes())
    assert status == 200
    (path,) = json.loads(body)
    assert files_in(folder)
    config = json.loads(ask(f"{address}config")[2])
    label = next(entry["id"] for entry in config["dependencies"] if len(entry["inputs"]) == 2)
    given = {"path": path, "orig_name": "a.wav", "meta": {"_type": "gradio.FileData"}}
    body = json.dumps({"data": [given, 1000], "fn_index": label, "session_hash": "b"}).encode()
    ask(f"{address}gradio_api/queue/join", body)
    answer = ask(f"{address}gradio_api/queue/data?session_hash=b")[2].decode()
    assert "gafx-result" in answer
    assert not files_in(folder)


@pytest.mark.slow
@pytest.mark.parametrize("signal_number", [signal.SIGINT, signal.SIGTERM])
def test_the_command_ends_cleanly_and_leaves_nothing(model, tmp_path, signal_number, sound):
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    command = [sys.executable, "-m", "gafx.cli", "demo", "--model", str(model.save(tmp_path / "model"))]
    surroundings = {**os.environ, "TMPDIR": str(temporary), "PYTHONUNBUFFERED": "1"}
    surroundings.pop("GRADIO_TEMP_DIR", None)
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=surroundings,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip
    try:
        output = process.stdout.readline()
        address = re.match(r"http://127\.0\.0\.1:\d+/", output)
        assert address, output + process.stderr.read()
        assert upload(address.group(), sound.read_bytes())[0] == 200  # and nobody asks for an answer
        assert files_in(temporary)
        process.send_signal(signal_number)
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 0, errors
    assert "Traceback" not in errors
    assert not files_in(temporary)
    assert not list(temporary.glob("gafx-demo-*"))


# --- a browser --------------------------------------------------------------------------------------------------------


@pytest.fixture
def opened_page(browser, served):
    """A page, what it asked for, and what went wrong in it."""
    context = browser.new_context(permissions=["microphone"])
    page = context.new_page()
    asked, wrong = [], []
    page.on("request", lambda request: asked.append(request.url))
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("dialog", lambda dialog: (wrong.append(dialog.message), dialog.dismiss()))
    page.goto(served[0])
    page.wait_for_selector("#gafx-audio input[type=file]", state="attached", timeout=60_000)
    page.wait_for_function("() => window.gafxAnswered")
    yield page
    context.close()
    assert not wrong
    assert not [url for url in asked if not url.startswith((served[0], "data:", "blob:"))]


@pytest.mark.slow
def test_a_browser_gets_probabilities_for_a_wav(opened_page, served, sound):
    opened_page.set_input_files("#gafx-audio input[type=file]", sound)
    opened_page.wait_for_selector(".gafx-result", timeout=60_000)
    assert opened_page.locator(".gafx-result h2").inner_text().strip().endswith("%")
    assert opened_page.locator(".gafx-picture img:visible").count() == 1
    width = "element => element.complete && element.naturalWidth"
    assert opened_page.locator(".gafx-picture img:visible").evaluate(width) > 500
    opened_page.wait_for_function("() => document.querySelector('.gafx-player').src.startsWith('blob:')")
    assert "${alert(1)}" in opened_page.inner_text("#gafx-head")
    assert not files_in(served[1])


@pytest.mark.slow
def test_a_browser_gets_a_sentence_for_each_wrong_file(opened_page, served, tmp_path, sound):
    with zipfile.ZipFile(tmp_path / "music.zip", "w") as archive:
        archive.write(sound)
    shutil.copy(tmp_path / "music.zip", tmp_path / "zip.wav")
    (tmp_path / "words.txt").write_text("no sound")
    (tmp_path / "empty.wav").touch()
    for name, count in (("huge.wav", 2**30), ("over.wav", LIMIT + 1)):
        with (tmp_path / name).open("wb") as file:
            file.truncate(count)
    for name, message in (
        ("music.zip", "music.zip is not an audio file"),
        ("words.txt", "words.txt is not an audio file"),
        ("huge.wav", "huge.wav has 1.07 GB, and this page takes at most 1.0 MB: cut it"),
        ("over.wav", "over.wav has 1,000,001 bytes, and this page takes at most 1.0 MB: cut it"),
        ("empty.wav", "empty.wav is empty (0 bytes)"),
    ):
        opened_page.set_input_files("#gafx-audio input[type=file]", tmp_path / name)
        found = opened_page.wait_for_function("() => document.getElementById('gafx-note').textContent").json_value()
        assert found.startswith(message)
        opened_page.evaluate("() => { document.getElementById('gafx-note').textContent = '' }")
    opened_page.set_input_files("#gafx-audio input[type=file]", tmp_path / "zip.wav")
    opened_page.wait_for_selector(".gafx-refusal", timeout=60_000)
    assert opened_page.inner_text(".gafx-refusal").startswith("zip.wav cannot be decoded")
    # What is dropped takes the same way as what is chosen.
    opened_page.evaluate(
        """() => {
          const data = new DataTransfer();
          data.items.add(new File(['words'], 'dropped.txt', {type: 'text/plain'}));
          document.querySelector('#gafx-audio button').dispatchEvent(
            new DragEvent('drop', {bubbles: true, cancelable: true, dataTransfer: data}));
        }"""
    )
    assert opened_page.inner_text("#gafx-note").startswith("dropped.txt is not an audio file")
    assert not files_in(served[1])


@pytest.mark.slow
def test_a_browser_records(opened_page, served):
    opened_page.click("#gafx-audio .source-selection button:nth-child(2)")
    opened_page.click("#gafx-audio .record-button")
    opened_page.wait_for_timeout(3000)
    opened_page.click("#gafx-audio .stop-button")
    opened_page.wait_for_selector(".gafx-result", timeout=60_000)
    assert "windows of 1 s" in opened_page.inner_text(".gafx-result")
    assert not files_in(served[1])
