"""Figures of labelled files: the reduction of a file to columns, and the figure's content."""

import tracemalloc
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

import gafx
from gafx.deploy import observe, plot
from gafx.deploy.predict import Prediction
from gafx.errors import UnreadableAudio, UsageError
from gafx.report.format import clock

RATE = 22050
SEGMENT = 22000  # samples; an even number of frames
LABELS = ("blues", "jazz", "rock", "folk", "funk", "dub", "swing", "house")


def build(frontend="mel", labels=LABELS):
    torch.manual_seed(0)
    seconds = SEGMENT / RATE
    return gafx.create_model(
        frontend, {"name": "ast", "depth": 1}, classes=list(labels), segment_seconds=seconds
    ).eval()  # fmt: skip


@pytest.fixture(scope="module")
def model():
    return build({"name": "gafx_r", "width": 16})


@pytest.fixture
def wave(rng):
    return (0.1 * rng.standard_normal(2 * SEGMENT + 15000)).clip(-0.9, 0.9).astype(np.float32)


@pytest.fixture
def file(wave, wav_factory):
    return wav_factory("clip.wav", wave, subtype="FLOAT")


def prediction(name="clip.wav", seconds=10.0, *, stacked=True, labels=LABELS, window=2.0, step=1.0):
    """Probabilities of windows that drift from label to label."""
    starts = np.arange(0, seconds - window + 1e-9, step)
    windows = np.stack([starts, starts + window], axis=1)
    height = np.cos(np.linspace(0, 5, len(starts))[:, None] + np.arange(len(labels)))
    values = 1 / (1 + np.exp(-2 * height))
    if stacked:
        values /= values.sum(axis=1, keepdims=True)
    return Prediction(
        file=name, classes=tuple(labels), seconds=seconds, probabilities=values.mean(axis=0), windows=windows,
        window_probabilities=values,
    )  # fmt: skip


def observed(seconds=10.0, parts=1, name="gafx_r"):
    ramp = np.linspace(0, 1, 100, dtype=np.float32)
    return plot.Observed(
        seconds=seconds,
        envelope=plot.Strip(np.stack([-ramp, ramp]), seconds / 100),
        map=plot.Strip(np.tile(ramp, (parts, 16, 1)), seconds / 100),
        mel=plot.Strip(np.tile(ramp, (128, 1)), seconds / 100),
        map_name=name,
        mel_edges=(20.0, 11025.0),
    )


def texts(figure):
    """Everything that is written on a figure."""
    from matplotlib.text import Text

    return [found.get_text() for found in figure.findobj(Text) if found.get_text()]


def direct(model, wave, columns, planes=1):
    """The pooled map: windows of one length every three quarters of it, weighted in the frames that they share."""
    frames = model.frontend.output_shape(SEGMENT)[2] // planes
    step = SEGMENT // (model.frontend.output_shape(2 * SEGMENT)[2] // planes - frames)
    hop = round(0.75 * SEGMENT / step) * step
    starts = list(range(0, max(len(wave) - SEGMENT, 0) + 1, hop))
    ends = [*(start + SEGMENT for start in starts[:-1]), len(wave)]
    maps = []
    for start, end in zip(starts, ends, strict=True):
        with torch.inference_mode():
            found = model.features(torch.from_numpy(wave[start:end])[None, None])[0].numpy()
        found = found.reshape(*found.shape[:2], planes, -1).transpose(0, 2, 1, 3)
        maps.append(found.reshape(-1, *found.shape[2:]))
    whole = starts[-1] // step + maps[-1].shape[2]
    total, weights = np.zeros((*maps[0].shape[:2], whole)), np.zeros(whole)
    for number, (start, found) in enumerate(zip(starts, maps, strict=True)):
        weight = np.ones(found.shape[2])
        shared = frames - hop // step
        rise = np.clip(4 * (np.arange(shared) + 0.5) / shared - 2, 0, 1)
        if number:
            weight[:shared] = rise
        if number < len(starts) - 1:
            weight[-shared:] = 1 - rise
        at = slice(start // step, start // step + len(weight))
        total[..., at] += weight * found
        weights[at] += weight
    assert np.allclose(weights, 1)
    width = 1
    while -(-whole // width) > columns:
        width *= 2
    return np.stack([total[..., at : at + width].mean(axis=2) for at in range(0, whole, width)], axis=2)


# --- reduction to columns ---------------------------------------------------------------------------------------------


def test_the_envelope_is_that_of_the_samples(model, file, wave):
    envelope = plot.observe(model, file, columns=200).envelope
    width = round(envelope.step * RATE)
    assert width == 512  # the least power of two that leaves at most 200 columns
    segments = [wave[at : at + width] for at in range(0, len(wave), width)]
    assert np.array_equal(envelope.values, [[p.min() for p in segments], [p.max() for p in segments]])


@pytest.mark.parametrize("columns", [50, 1200])
def test_the_map_is_the_mean_of_the_models_own(model, file, wave, columns):
    found = plot.observe(model, file, columns=columns)
    expected = direct(model, wave, columns)
    assert found.map.values.shape == expected.shape
    assert np.allclose(found.map.values, expected, atol=1e-5)
    assert found.seconds == pytest.approx(len(wave) / RATE)
    assert found.map.step * found.map.values.shape[2] == pytest.approx(found.seconds, abs=found.map.step)
    assert found.mel.step * found.mel.values.shape[1] == pytest.approx(found.seconds, abs=found.mel.step)
    assert found.map_name == "gafx_r"


def test_no_seams_where_windows_meet(wav_factory):
    """The map of a file, a window at a time, is the map of the whole file at once."""
    time_axis = np.arange(6 * SEGMENT) / RATE
    tones = sum(0.1 * np.sin(2 * np.pi * hertz * time_axis) for hertz in (220, 1300, 3000)).astype(np.float32)
    model = build()
    found = plot.observe(model, wav_factory("tones.wav", tones, subtype="FLOAT"), columns=2000)
    with torch.inference_mode():
        whole = model.features(torch.from_numpy(tones)[None, None])[0].numpy()
    assert found.map.values.shape == whole.shape
    assert np.allclose(found.map.values, whole, atol=1e-4)


def test_channels_and_planes_are_parts(file, wave):
    fused = build({"name": "fused", "parts": {"a": {"name": "mel"}, "b": {"name": "gafx_r", "width": 16}}})
    assert np.allclose(plot.observe(fused, file, columns=60).map.values, direct(fused, wave, 60), atol=1e-5)
    mel = build()
    mel.frontend.planes = 2
    cut = wave[:SEGMENT]
    both = plot.observe(mel, _as_file(file, cut), columns=60).map.values
    assert both.shape[:2] == (2, 128)
    assert np.allclose(both, direct(mel, cut, 60, planes=2), atol=1e-5)


def _as_file(path, samples):
    import soundfile

    soundfile.write(path, samples, RATE, subtype="FLOAT")
    return path


def test_a_tone_stands_in_the_mel_spectrogram_where_it_sounds(wav_factory):
    second = np.arange(RATE) / RATE
    tone = np.concatenate([np.zeros(RATE), 0.5 * np.sin(2 * np.pi * 1000 * second)])
    found = plot.observe(build(), wav_factory("tone.wav", tone))
    band = int(found.mel.values[:, -20:].mean(axis=1).argmax())
    times = (np.arange(found.mel.values.shape[1]) + 0.5) * found.mel.step
    loud = times[found.mel.values[band] > found.mel.values[band].mean()]
    assert loud.min() == pytest.approx(1.0, abs=0.06)
    figure = plot.draw(prediction(seconds=2.0, window=0.5, step=0.5), found, mel=True)
    assert len(figure.axes) == 3  # its own map is a mel spectrogram already
    mel = plot.Observed(**{**found.__dict__, "map_name": "gafx_r"})
    axes = plot.draw(prediction(seconds=2.0, window=0.5, step=0.5), mel, mel=True).axes[-1]
    place = dict(zip([t.get_text() for t in axes.get_yticklabels()], axes.get_yticks(), strict=True))
    assert place["1 kHz"] == pytest.approx(band + 0.5, abs=1)


def test_columns_take_the_same_memory_whatever_the_length(rng):
    def peak(blocks):
        pool = observe._Columns(np.maximum, 100)
        tracemalloc.start()
        for _ in range(blocks):
            pool.add(block)
        size = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return pool, size

    block = rng.standard_normal((3, 10_007)).astype(np.float32)
    short, of_short = peak(60)
    long, of_long = peak(600)
    assert 50 <= short.values().shape[1] <= 100
    assert 50 <= long.values().shape[1] <= 100
    assert of_long < 1.1 * of_short
    whole = np.tile(block, 600)
    expected = [whole[:, at : at + long.width].max(axis=1) for at in range(0, whole.shape[1], long.width)]
    assert np.array_equal(long.values(), np.stack(expected, axis=1))


def test_a_long_file_is_read_in_blocks(monkeypatch, model):
    longest = []

    def blocks(*_, **__):
        for number in range(40):
            yield np.full((1, 3 * SEGMENT // 4), number / 100, np.float32)

    windows = observe._windows
    monkeypatch.setattr(observe, "stream", blocks)
    monkeypatch.setattr(
        observe, "_windows", lambda *a: (longest.append(window[1].shape[1]) or window for window in windows(*a))
    )
    found = plot.observe(model, "unused", columns=16)
    assert longest[:-1] == [SEGMENT] * (len(longest) - 1)
    assert SEGMENT <= longest[-1] < 2 * SEGMENT
    assert 38 <= len(longest) <= 40
    assert found.seconds == pytest.approx(30 * SEGMENT / RATE)
    assert max(found.envelope.values.shape[1], found.map.values.shape[2], found.mel.values.shape[1]) <= 16


def test_files_that_cannot_be_observed(model, wav_factory, tmp_path, rng):
    with pytest.raises(UnreadableAudio, match="too short"):
        plot.observe(model, wav_factory("short.wav", np.ones((20, 1))))
    with pytest.raises(UnreadableAudio, match="does not exist"):
        plot.observe(model, tmp_path / "none.wav")
    with pytest.raises(UsageError, match="columns=7"):
        plot.observe(model, tmp_path / "none.wav", columns=7)
    rest = plot.observe(model, wav_factory("rest.wav", 0.1 * rng.standard_normal(SEGMENT + 100)))
    assert rest.seconds == pytest.approx((SEGMENT + 100) / RATE)
    assert rest.map.step * rest.map.values.shape[2] == pytest.approx(rest.seconds, abs=rest.map.step)


# --- figure ----------------------------------------------------------------------------------------------------------


def test_probabilities_that_sum_to_one_are_stacked_to_the_top():
    found = prediction()
    figure = plot.draw(found, observed(), labels=3)
    axes = figure.axes[0]
    areas = [area.get_paths()[0].vertices for area in axes.collections]
    assert len(areas) == 4  # three labels and the rest
    assert max(area[:, 1].max() for area in areas) == pytest.approx(1)
    assert areas[0][:, 1].min() == 0
    best = [label for label, _ in found.top(3)]
    shown = [text.get_text() for text in axes.get_legend().get_texts()]
    assert [text.split()[0] for text in shown[:3]] == best
    assert shown[3].startswith("5 other")
    # At the centre of each window the height of the most probable label's area is its probability.
    index = LABELS.index(best[0])
    for (begin, end), value in zip(found.windows, found.window_probabilities[:, index], strict=True):
        line = axes.collections[-1].get_paths()[0]
        inside = [y for y in np.linspace(0.001, 0.999, 999) if line.contains_point(((begin + end) / 2 + 0.01, y))]
        assert len(inside) / 999 == pytest.approx(value, abs=0.003)


def test_windows_are_drawn_around_their_centres_and_described():
    edges, values, each = plot._steps(np.array([[0.0, 10.0], [5.0, 15.0], [12.0, 22.0]]), np.eye(3))
    assert edges.tolist() == [0, 7.5, 13.5, 22]
    assert values.tolist() == np.eye(3).tolist()
    assert each == 1
    figure = plot.draw(prediction(), observed())
    assert any("windows of 2 s, one every 1 s" in text for text in texts(figure))
    many = prediction(seconds=5000.0)
    edges, values, each = plot._steps(many.windows, many.window_probabilities)
    assert each == 5
    assert len(edges) == len(values) + 1 == 1001
    assert np.allclose(values[-1], many.window_probabilities[4995:].mean(axis=0))
    assert any("means of 5 windows" in text for text in texts(plot.draw(many, observed(5000.0))))
    alone = prediction(seconds=2.0)
    assert "one window of 2 s" in texts(plot.draw(alone, observed(2.0)))


def test_independent_probabilities_are_lines():
    found = prediction(stacked=False)
    axes = plot.draw(found, observed(), labels=4).axes[0]
    assert axes.get_ylabel() == "probability"
    steps = [patch.get_data() for patch in axes.patches]
    assert len(steps) == 4
    assert len({(patch.get_edgecolor(), patch.get_linestyle()) for patch in axes.patches}) == 4
    for (label, _), data in zip(found.top(4), steps, strict=True):
        assert np.array_equal(data.values, found.window_probabilities[:, LABELS.index(label)])


def test_one_time_axis_for_all():
    figure = plot.draw(prediction(), observed(parts=2), mel=True)
    assert len(figure.axes) == 5  # probabilities, wave, two parts of the map, mel
    assert {axes.get_xlim() for axes in figure.axes} == {(0.0, 10.0)}
    assert [tuple(image.get_extent()) for axes in figure.axes[2:] for image in axes.images] == [
        (0.0, 10.0, 0.0, 16.0), (0.0, 10.0, 0.0, 16.0), (0.0, 10.0, 0.0, 128.0)
    ]  # fmt: skip
    assert figure.get_suptitle().startswith("clip.wav: ")


@pytest.mark.parametrize(
    ("seconds", "first", "last"),
    [(0.7, "0:00.0", "0:00.7"), (40, "0:00", "0:40"), (200, "0:00", "3:00"), (36000, "0:00", "10:00:00")],
)
def test_times_are_written_as_clocks(seconds, first, last):
    figure = plot.draw(prediction(seconds=2.0), observed(seconds))
    shown = [text.get_text() for text in figure.axes[-1].get_xticklabels()]
    assert (shown[0], shown[-1]) == (first, last)
    assert len(shown) <= 12
    assert clock(3725) == "1:02:05"


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("/music/a$5_$6^{.wav", "a$5_$6^{.wav"),
        ("Zürich_Straße.wav", "Zürich_Straße.wav"),
        ("caf\udce9.wav", r"caf\xe9.wav"),
        ("new\nline.wav", r"new\nline.wav"),
        ("\U0001f9ff.wav", "\u25a1.wav"),
        ("a" * 100 + "_part7.wav", "a_part7.wav"),
    ],
)
def test_names_of_all_kinds_are_drawn(name, shown, tmp_path):
    labels = ("_under", "$x_1$", "caf\udce9", "<b>&")
    with warnings.catch_warnings():
        for kind in (UserWarning, DeprecationWarning):  # a letter without a glyph, a label that a legend leaves out
            warnings.simplefilter("error", kind)
        figure = plot.draw(prediction(name, labels=labels), observed(name=r"$\frac{"))
        if "$" in name or "\U0001f9ff" in name:  # once is enough for the labels
            plot.write(figure, tmp_path / "picture.png")
    title = figure.get_suptitle()
    if len(name) > 100:
        assert title.startswith("aaaa")
        assert "…" in title
        assert "_part7.wav: " in title
    else:
        assert title.startswith(f"{shown}: ")
    legend = {text.get_text().rpartition(" ")[0].rpartition(" ")[0] for text in figure.axes[0].get_legend().get_texts()}
    assert legend == {"_under", "$x_1$", r"caf\xe9", "<b>&"}


def test_figures_are_written_by_their_suffix(tmp_path):
    figure = plot.draw(prediction(), observed())
    assert plot.write(figure, tmp_path / "new" / "a.png").read_bytes().startswith(b"\x89PNG")
    assert b"<svg" in plot.write(figure, tmp_path / "a.svg").read_bytes()
    with pytest.raises(UsageError, match=r"\.gif"):
        plot.write(figure, tmp_path / "a.gif")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.svg", "new"]


def test_dark_and_narrow_figures():
    dark = plot.draw(prediction(), observed(), dark=True)
    assert dark.get_facecolor()[3] == 0
    narrow = plot.draw(prediction(), observed(), width=4.2)
    assert narrow.get_size_inches()[0] == pytest.approx(4.2)
    narrow.canvas.draw()
    lines, legend = narrow.axes[0].get_window_extent(), narrow.axes[0].get_legend().get_window_extent()
    assert legend.y1 <= lines.y0
    assert legend.y0 >= narrow.axes[1].get_window_extent().y1


def test_long_names_leave_room_in_a_narrow_figure():
    names = tuple(f"{letter} name of twenty letters" for letter in "abcdefgh")
    figure = plot.draw(prediction(labels=names), observed(), width=4.2)
    figure.canvas.draw()
    lines, legend = figure.axes[0].get_window_extent(), figure.axes[0].get_legend().get_window_extent()
    assert lines.width > 0.7 * figure.bbox.width
    assert legend.x1 <= figure.bbox.width
    assert legend.y0 >= figure.axes[1].get_window_extent().y1


def test_threads_draw_the_same_figure():
    import matplotlib

    backend = matplotlib.get_backend(auto_select=False)
    alone = plot.encode(plot.draw(prediction(), observed()))
    with ThreadPoolExecutor(2) as pool:
        together = list(pool.map(lambda _: plot.encode(plot.draw(prediction(), observed())), range(2)))
    assert all(picture == alone for picture in together)
    assert matplotlib.get_backend(auto_select=False) == backend


def test_silence_is_drawn(tmp_path):
    flat = observed()
    for strip in (flat.envelope, flat.map, flat.mel):
        strip.values[:] = 0
    plot.write(plot.draw(prediction(), flat, mel=True), tmp_path / "silent.png")


def test_predictions_that_cannot_be_drawn():
    found = prediction()
    with pytest.raises(UsageError, match="is empty"):
        plot.draw(Prediction(file="a.wav", classes=LABELS, error="is empty"), observed())
    with pytest.raises(UsageError, match="over_time=True"):
        plot.draw(Prediction(file="a.wav", classes=LABELS, probabilities=found.probabilities), observed())
    with pytest.raises(UsageError, match="labels=9"):
        plot.draw(found, observed(), labels=9)
