"""Contract of every registered front-end and classifier."""

import inspect
import typing
from unittest.mock import patch

import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch.testing import assert_close

import gafx
from gafx.classifiers.estimator import Estimator
from gafx.deploy.export import export
from gafx.errors import UsageError
from gafx.inference import Probabilities
from gafx.model import GAFX, create_frontend, create_model
from gafx.nn import bounded
from gafx.registry import CLASSIFIERS, FRONTENDS, OBJECTIVES, SOURCES, signature_in_source

SECONDS = 0.25
CLASSES = ["blues", "jazz", "rock"]
# What makes a part cheap, for those that have the keyword.
CHEAP = {
    "width": 16, "depth": 2, "size": "tiny", "pretrained": False, "codec_depth": 1,
    "parts": {"mel": {"name": "mel"}, "wave": {"name": "gafx_r", "width": 16}},
    "base": {"name": "cnn"}, "base_classes": 5,
}  # fmt: skip
# What suits the short clips (some 30 frames) and the width of these tests.
SHORT = {
    "gabor": {"hop_length": 192},
    "handcrafted": {"window_seconds": 0.012, "n_fft": 512, "hop_length": 128},
    "mfcc": {"n_mfcc": 20, "hop_length": 192},  # AST needs 16 rows
    "bert": {"heads": 4},
}
# Fewer samples than this a part does not promise to read; most read a single one.
SHORTEST: dict[str, int] = {}
# Length of the clips that every parameter learns from. HDemucs' innermost attention leaves a frame's own value out: of
# two frames each sees one other, whatever its queries say, so it takes three there, which is 5 frames of 1024 samples.
LEARNING: dict[str, float] = {"gafx_u": 0.5}
# Classifiers without parameters are fitted on random rows; what training does is not asked of them.
FITTED = {"estimator"}
# Sequences of tokens in the place of sounds, and what reads and writes them: tests/test_generators.py.
OF_TOKENS = {"tokens", "decoder", "vae_lstm", "vae_transformer"}
LENGTHS = (1, 199, 200, 201, 4000, 11025, 22050, 24001)

FRONT_ENDS, NETWORKS = ([name for name in each.names() if name not in OF_TOKENS] for each in (FRONTENDS, CLASSIFIERS))
frontends = pytest.mark.parametrize("frontend_name", FRONT_ENDS)
classifiers = pytest.mark.parametrize("classifier_name", NETWORKS)
PAIRS = [(name, "ast") for name in FRONT_ENDS] + [("mel", name) for name in NETWORKS if name != "ast"]
parts = pytest.mark.parametrize(("frontend_name", "classifier_name"), PAIRS)
learning_parts = pytest.mark.parametrize(
    ("frontend_name", "classifier_name"), [pair for pair in PAIRS if pair[1] not in FITTED]
)


def cheap(registry, name):
    cheaper = {key: value for key, value in CHEAP.items() if key in registry.keywords(name)}
    return {"name": name, **cheaper, **SHORT.get(name, {})}


def build_frontend(name):
    torch.manual_seed(0)
    return create_frontend(**cheap(FRONTENDS, name))


def build_model(frontend_name, classifier_name):
    torch.manual_seed(0)
    frontend, classifier = cheap(FRONTENDS, frontend_name), cheap(CLASSIFIERS, classifier_name)
    model = fit(create_model(frontend, classifier, classes=CLASSES, segment_seconds=SECONDS))
    for norm in model.map_norm.parts():
        if not norm.learned:
            norm.fit(-8.0, 3.0)
    return model


def build_classifier(name, map_shape, classes=3):
    torch.manual_seed(0)
    arguments = cheap(CLASSIFIERS, name)
    return fit(CLASSIFIERS.create(arguments.pop("name"), map_shape, classes, **arguments))


def fit(module):
    """Fit a classifier, or that of a model, if it is to be fitted rather than trained."""
    classifier = getattr(module, "classifier", module)
    if isinstance(classifier, Estimator):
        rows = torch.randn(30, classifier.width, generator=torch.Generator().manual_seed(0)).double().numpy()
        labels = [number % classifier.num_classes for number in range(30)]
        classifier.set_estimator(LogisticRegression().fit(rows, labels))
    return module


def waves(frontend, batch=3, samples=None, seed=0):
    """Tones with noise, each clip with another loudness."""
    samples = samples or round(SECONDS * frontend.sample_rate)
    generator = torch.Generator().manual_seed(seed)
    time = torch.arange(samples) / frontend.sample_rate
    tone = torch.stack([torch.sin(2 * torch.pi * 220 * (clip + 1) * time) for clip in range(batch)])[:, None]
    noise = torch.randn((batch, frontend.channels, samples), generator=generator)
    return (0.4 * tone + 0.1 * noise) * torch.linspace(1, 0.3, batch)[:, None, None]


# --- front-ends -------------------------------------------------------------------------------------------------------


@frontends
@torch.no_grad()
def test_the_declared_shape_is_the_real_one(frontend_name):
    frontend = build_frontend(frontend_name).eval()
    assert frontend.channels in (1, 2)
    assert frontend.sample_rate > 0
    for samples in LENGTHS:
        if samples >= SHORTEST.get(frontend_name, 1):
            feature_map = frontend(waves(frontend, 2, samples))
            assert feature_map.shape == (2, *frontend.output_shape(samples)), samples
            assert feature_map.dtype == torch.float32
            assert feature_map.isfinite().all()
            assert feature_map.shape[-1] % frontend.planes == 0


@frontends
def test_the_map_has_every_frame_of_a_longer_clip(frontend_name):
    frontend = build_frontend(frontend_name)
    frames = [frontend.output_shape(samples)[2] for samples in range(2000, 30_000, 97)]
    assert frames == sorted(frames)
    assert frames[-1] > frames[0]
    assert len({frontend.output_shape(samples)[:2] for samples in (2000, 30_000)}) == 1


@frontends
@pytest.mark.parametrize("shape", ["no channels", "no batch", "too many channels", "no samples", "four axes"])
def test_a_wave_of_the_wrong_shape_is_refused(frontend_name, shape):
    frontend = build_frontend(frontend_name)
    wrong = {
        "no channels": (2, 4000),
        "no batch": (4000,),
        "too many channels": (2, frontend.channels + 1, 4000),
        "no samples": (2, frontend.channels, 0),
        "four axes": (1, 2, frontend.channels, 4000),
    }
    with pytest.raises(ValueError, match=str(frontend.sample_rate)):
        frontend(torch.zeros(wrong[shape]))


@frontends
@torch.no_grad()
def test_types_of_waves(frontend_name):
    """soundfile reads float64, caches hold int16."""
    frontend = build_frontend(frontend_name).eval()
    wave = waves(frontend)
    assert_close(frontend(wave.double()), frontend(wave), atol=1e-4, rtol=1e-4)
    with pytest.raises(ValueError, match="divide int16 samples by 32768"):
        frontend((wave * 32767).to(torch.int16))


@frontends
@torch.no_grad()
def test_clips_of_a_batch_do_not_mix(frontend_name):
    frontend = build_frontend(frontend_name).eval()
    batch = waves(frontend)
    together = frontend(batch)
    assert torch.equal(together, frontend(batch))
    for clip in range(3):
        assert_close(frontend(batch[clip : clip + 1])[0], together[clip], atol=1e-4, rtol=1e-4)
    assert (together[0] - together[1]).abs().max() > 1e-3  # and the map does depend on the clip


# --- front-end and classifier -----------------------------------------------------------------------------------------


@learning_parts
def test_gradients_reach_every_parameter(frontend_name, classifier_name):
    model = build_model(frontend_name, classifier_name)
    model.train()
    samples = round(LEARNING.get(frontend_name, SECONDS) * model.frontend.sample_rate)
    learning = {name: p for name, p in model.named_parameters() if p.requires_grad}
    without = set(learning)
    for _ in range(2):  # a branch whose last gain starts at zero, as in many ResNets, gets its gradient after one step
        loss = torch.nn.functional.cross_entropy(model(waves(model.frontend, samples=samples)), torch.arange(3))
        loss.backward()
        assert loss.isfinite()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in learning.values())
        without -= {name for name, p in learning.items() if (p.grad != 0).any()}
        if not without:
            break
        torch.optim.SGD(model.parameters(), lr=0.1).step()
    assert not without
    if model.frontend.learned:
        assert any(p.requires_grad for p in model.frontend.parameters())


@parts
@torch.no_grad()
def test_predictions_do_not_depend_on_neighbours(frontend_name, classifier_name):
    model = build_model(frontend_name, classifier_name)
    model.eval()
    batch = waves(model.frontend)
    logits = model(batch)
    assert logits.shape == (3, len(CLASSES))
    assert torch.equal(logits, model(batch))
    for clip in range(3):
        assert_close(model(batch[clip : clip + 1])[0], logits[clip], atol=1e-4, rtol=0)
    assert (logits[0] - logits[2]).abs().max() > 1e-3 * logits.abs().max()  # and they do depend on the clip


@parts
@torch.no_grad()
def test_embeddings_and_features(frontend_name, classifier_name):
    model = build_model(frontend_name, classifier_name)
    model.eval()
    batch = waves(model.frontend)
    assert model.features(batch).shape[1:] == model.classifier.map_shape
    embedding = model.embed(batch)
    assert embedding.shape == (3, model.classifier.width)
    if not model.classifier.frame_head:
        assert_close(model.classifier.head(embedding), model(batch))


class Undefined(bounded.NoInit):
    """Leaves NaN where nothing is drawn, so that a value shows that the file does not replace."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        found = super().__torch_function__(func, types, args, kwargs)
        if func in bounded._RANDOM and isinstance(found, torch.nn.Parameter) and not found.is_meta:
            found.data.fill_(torch.nan)
        return found


@parts
@torch.no_grad()
def test_save_and_load(frontend_name, classifier_name, tmp_path):
    model = build_model(frontend_name, classifier_name)
    model.train()
    model(waves(model.frontend, seed=8))  # moves running statistics, where there are any
    model.eval()
    folder = model.save(tmp_path / "model")
    torch.manual_seed(99)
    with patch.object(bounded, "NoInit", Undefined):
        loaded = gafx.load(folder)
    assert isinstance(loaded, GAFX)
    assert not loaded.training
    assert loaded.info == model.info
    assert loaded.info.classes == CLASSES
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]
    batch = waves(model.frontend)
    assert torch.equal(loaded(batch), model(batch))
    state = loaded.state_dict()
    assert state.keys() == model.state_dict().keys()
    for name, tensor in [*model.state_dict().items(), *model.named_buffers()]:
        assert torch.equal(tensor, loaded.get_buffer(name) if name not in state else state[name]), name


@learning_parts
def test_finite_in_bfloat16_on_silence_and_at_full_scale(frontend_name, classifier_name):
    model = build_model(frontend_name, classifier_name)
    model.train()
    samples = round(SECONDS * model.frontend.sample_rate)
    square = torch.sign(torch.sin(torch.arange(samples) * 0.05) + 1e-6)
    batch = torch.stack([torch.zeros(samples), torch.ones(samples), square, -square])[:, None]
    batch = batch.expand(-1, model.frontend.channels, -1).contiguous()
    for enabled in (False, True):
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            logits = model(batch)
        assert logits.isfinite().all()
        logits.float().square().sum().backward()
        for name, parameter in model.named_parameters():
            assert parameter.grad is None or parameter.grad.isfinite().all(), name
        model.eval()
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            assert model(batch[:1]).isfinite().all()  # a silent clip alone
        model.train()


@learning_parts
def test_converted_to_bfloat16(frontend_name, classifier_name):
    check_converted(frontend_name, classifier_name, torch.bfloat16)


@pytest.mark.parametrize("built_in", FRONT_ENDS)
@torch.no_grad()
def test_converted_to_float64(built_in):
    """All tensors are float64 then, and waves of either type are accepted; not required of others' front-ends."""
    model = build_model(built_in, "cnn").eval()
    wave = waves(model.frontend)
    expected = model(wave)
    model.double()
    assert {p.dtype for p in model.parameters()} == {torch.float64}
    for given in (wave, wave.double()):
        logits = model(given)
        assert logits.dtype == model.embed(given).dtype == torch.float64
        assert_close(logits.float(), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.slow
@learning_parts
def test_converted_to_float16(frontend_name, classifier_name):
    check_converted(frontend_name, classifier_name, torch.float16)


def check_converted(frontend_name, classifier_name, dtype):
    model = build_model(frontend_name, classifier_name).eval()
    wave = waves(model.frontend)
    with torch.no_grad():
        expected = model(wave)
    converted = model.to(dtype)
    assert {tensor.dtype for tensor in converted.frontend.state_dict().values()} <= {torch.float32, torch.int64}
    assert {p.dtype for p in converted.classifier.parameters()} == {converted.dtype} == {dtype}
    for given in (wave, wave.to(dtype)):
        with torch.no_grad():
            logits, embedding = converted(given), converted.embed(given)
        assert logits.dtype == embedding.dtype == converted.features(given).dtype == dtype
        # A logit of 2 to 4 has steps of 1/64 in bfloat16.
        assert_close(logits.float(), expected, atol=0.08, rtol=0.05)
    assert (Probabilities(converted)(wave).sum(dim=1) - 1).abs().max() < 1e-5
    converted.train()(wave).float().square().sum().backward()
    for name, parameter in converted.named_parameters():
        assert parameter.grad is None or parameter.grad.isfinite().all(), name


@pytest.mark.slow
@learning_parts
def test_compiled(frontend_name, classifier_name):
    """Traced by `torch.compile`, forward and backward; code generation, which needs a C++ compiler, is left out."""
    model = build_model(frontend_name, classifier_name).eval()
    wave = waves(model.frontend, samples=round(0.5 * model.frontend.sample_rate))
    with torch.no_grad():
        expected = model(wave)
    torch.compiler.reset()
    compiled = torch.compile(model, backend="aot_eager")
    with torch.no_grad():
        assert_close(compiled(wave), expected, atol=1e-5, rtol=1e-5)
    model.train()
    compiled(wave).square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is None or parameter.grad.isfinite().all(), name


@pytest.mark.parametrize(
    ("frontend_name", "classifier_name"),
    [
        pytest.param(name, classifier, marks=[] if name == "mel" else pytest.mark.slow)
        for name, classifier in [("mel", name) for name in NETWORKS]
        + [(name, "ast") for name in FRONT_ENDS if name != "mel"]
    ],
)
def test_an_exported_model_equals_the_model(frontend_name, classifier_name, tmp_path):
    model = build_model(frontend_name, classifier_name).eval()
    if reason := model.frontend.not_exportable or model.classifier.not_exportable:
        with pytest.raises(UsageError, match=reason):
            export(Probabilities(model), tmp_path / "model.pt2", format="torch_export")
        return
    exported = export(Probabilities(model), tmp_path / "model.pt2", format="torch_export")
    assert exported.difference < 1e-4
    if model.frontend.fixed_length or model.classifier.fixed_length:
        assert exported.fixed is not None
    wave = waves(model.frontend, batch=2, samples=exported.window_samples)
    program = torch.export.load(tmp_path / "model.pt2").module()
    assert_close(program(wave), model(wave).softmax(dim=-1), atol=1e-4, rtol=0)


# --- classifiers ------------------------------------------------------------------------------------------------------


@classifiers
@torch.no_grad()
def test_shorter_and_longer_maps(classifier_name):
    classifier = build_classifier(classifier_name, (1, 128, 64)).eval()
    for frames in (16, 40, 64, 65, 150):
        logits = classifier(torch.randn(2, 1, 128, frames))
        assert logits.shape == (2, len(CLASSES))
        assert logits.isfinite().all()


@classifiers
def test_several_map_channels(classifier_name):
    classifier = build_classifier(classifier_name, (2, 64, 32))
    assert (classifier.map_shape, classifier.num_classes) == ((2, 64, 32), len(CLASSES))
    assert classifier(torch.randn(1, 2, 64, 32)).shape == (1, len(CLASSES))
    with pytest.raises(ValueError, match="does not fit"):
        classifier(torch.randn(1, 1, 64, 32))


@classifiers
@pytest.mark.parametrize("map_shape", [(1, 128, 64), (4, 80, 40), (3, 64, 16), (1, 16, 16), (1, 4, 200), (1, 128, 1)])
@torch.no_grad()
def test_check_map_refuses_what_cannot_be_built_and_nothing_else(classifier_name, map_shape):
    """By `check_map`, or, where the limits depend on its arguments, by the constructor."""
    refused, classifier = "", None
    try:
        CLASSIFIERS.get(classifier_name).check_map(map_shape)
        classifier = build_classifier(classifier_name, map_shape).eval()
    except UsageError as error:
        refused = str(error)
    if classifier is None:
        assert any(str(size) in refused for size in map_shape)
    else:
        assert map_shape[2] >= classifier.min_frames
        assert classifier(torch.randn(1, *map_shape)).shape == (1, len(CLASSES))
        with pytest.raises(ValueError, match="does not fit"):
            classifier(torch.randn(1, map_shape[0] + 1, *map_shape[1:]))


@classifiers
def test_head_names_are_what_depends_on_the_classes(classifier_name):
    one = build_classifier(classifier_name, (1, 128, 64)).state_dict()
    other = build_classifier(classifier_name, (1, 128, 64), 7)
    names = other.head_names()
    differ = {name for name, tensor in other.state_dict().items() if one[name].shape != tensor.shape}
    assert differ
    assert differ == {name for name in one if name.startswith(names)}


# --- names and keywords -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("registry", "name"), [(r, name) for r in (FRONTENDS, CLASSIFIERS, OBJECTIVES, SOURCES) for name in r.names()]
)
def test_keywords_read_from_source_equal_the_signature(registry, name):
    part = registry.get(name)
    hints = typing.get_type_hints(part.__init__ if inspect.isclass(part) else part)
    signature = {p.name: p for p in inspect.signature(part).parameters.values() if p.kind is p.KEYWORD_ONLY}
    static = signature_in_source(registry._files()[name])
    assert list(static.keywords) == list(signature)
    for key, keyword in static.keywords.items():
        assert keyword.default == signature[key].default
        assert type(keyword.default) is type(signature[key].default)
        assert keyword.annotation == hints[key]
        assert key in part.__doc__, f"{name} does not explain {key}"
    assert registry.signature(name) == static
    assert part.__module__.rpartition(".")[2] == name


@pytest.mark.parametrize("frontend_name", FRONTENDS.names())
def test_defaults_are_those_of_the_constructor(frontend_name):
    filled = FRONTENDS.check(frontend_name, {})
    signature = inspect.signature(FRONTENDS.get(frontend_name))
    assert filled == {name: parameter.default for name, parameter in signature.parameters.items()}
