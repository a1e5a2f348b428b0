from __future__ import annotations

import csv
import io
import json
import math
import zipfile
from collections import Counter
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from pipeline.config.distillation import NOISE, PROCEDURAL
from pipeline.dataset import stream as stream_module
from pipeline.dataset.dataset import Dataset
from pipeline.dataset.held_lock import NoLockError
from pipeline.dataset.layout import CLAIM, LOCK
from pipeline.dataset.lock import locked, reading
from pipeline.dataset.stream import ImageStream, ordered_batches
from pipeline.dataset.tar import decode_image, read_tar
from pipeline.distillation import loss_gradient
from pipeline.distillation.job import DistillJob, is_trained
from pipeline.distillation.loss import distillation_loss
from pipeline.distillation.step import Training
from pipeline.distillation.train_student import distill
from pipeline.errors import BadShardError, TryAgainError, UserError
from pipeline.execution.runner import JobsFailed, open_runner
from pipeline.execution.torchrun import Share
from pipeline.params import parse_params
from pipeline.stages.baselines import baseline_config
from pipeline.stages.distill import distill_students
from pipeline.stages.final_students import student_jobs
from pipeline.stages.synthesize import synthesize
from pipeline.stages.verify import verify
from pipeline.storage import digest_json
from pipeline.teachers.networks import build_network, load_weights
from tests.conftest import Params, changed, dataset, load, make, tree


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def job_of(params: Params) -> DistillJob:
    (job,) = student_jobs(*load(params))
    return job


def train(params: Params) -> list[dict[str, float]]:
    config, teacher = load(params)
    with open_runner(config) as run:
        return distill_students(config, teacher, run)


def students(params: Params) -> Path:
    return Path(params["paths"]["students"])


# The loss.


@pytest.mark.parametrize("temperature", [1.0, 4.0, 8.0])
def test_the_loss_is_kl_at_a_temperature(temperature: float) -> None:
    student, teacher = 5 * random(6, 4, seed=1), 5 * random(6, 4, seed=2)
    total = 0.0
    for s, t in zip(student.tolist(), teacher.tolist(), strict=True):
        p = [math.exp(value / temperature) for value in t]
        q = [math.exp(value / temperature) for value in s]
        p, q = [v / sum(p) for v in p], [v / sum(q) for v in q]
        total += sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
    found = distillation_loss(student, teacher, temperature).item()
    assert found == pytest.approx(temperature**2 * total / 6, rel=1e-4)


def test_the_loss_is_zero_for_a_student_like_its_teacher() -> None:
    logits = 5 * random(6, 4)
    assert distillation_loss(logits, logits + 3, 4.0).item() == pytest.approx(0, abs=1e-5)
    assert distillation_loss(logits, -logits, 4.0).item() > 1


# The stream.


def tars(params: Params) -> list[Path]:
    return sorted((dataset(params) / "train").glob("*.tar"))


def identities(batches: list[tuple[Tensor, Tensor]]) -> list[tuple[bytes, int]]:
    return [
        (pixels.numpy().tobytes(), int(label))
        for images, labels in batches
        for pixels, label in zip(images, labels, strict=True)
    ]


def test_an_ordered_pass_sees_every_sample_once(made: Params) -> None:
    batches = list(ordered_batches(tars(made), 6))
    assert [len(labels) for _, labels in batches] == [6, 6, 6, 2]
    found = [label for _, label in identities(batches)]
    expected = [int(parts["cls"]) for tar in tars(made) for _, parts, _ in read_tar(tar)]
    assert found == expected
    assert batches[0][0].dtype == torch.uint8 and batches[0][0].shape == (6, 1, 8, 8)
    assert batches[0][1].dtype == torch.int64


def test_an_epoch_is_a_shuffle_that_seed_and_number_decide(made: Params) -> None:
    def epoch(seed: int, number: int, shuffle: int = 100) -> list[tuple[bytes, int]]:
        return identities(list(ImageStream(tars(made), 5, shuffle, seed).epoch(number)))

    whole = identities(list(ordered_batches(tars(made), 5)))
    assert Counter(epoch(0, 0)) == Counter(whole)
    assert epoch(0, 0) == epoch(0, 0)
    assert len({tuple(order) for order in (epoch(0, 0), epoch(0, 1), epoch(1, 0), whole)}) == 4
    assert Counter(epoch(0, 0, shuffle=1)) == Counter(whole)


def test_an_epoch_leaves_out_a_last_smaller_batch(made: Params) -> None:
    batches = list(ImageStream(tars(made), 6, 100, 0).epoch(0))
    assert [len(labels) for _, labels in batches] == [6, 6, 6]


@pytest.mark.parametrize("keep", [0, 12, 20])
def test_an_endless_stream_is_epoch_after_epoch(
    made: Params, keep: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stream() -> ImageStream:
        return ImageStream(tars(made), 5, 8, seed=0, keep=keep)

    epochs = [identities(list(stream().epoch(number))) for number in range(3)]
    ends = list(islice(stream().endless(0, 0), 12))
    assert identities([batch for _, batch in ends]) == [one for epoch in epochs for one in epoch]
    decoded: list[bytes] = []

    def count(data: bytes) -> Any:
        decoded.append(data)
        return decode_image(data)

    monkeypatch.setattr(stream_module, "decode_image", count)
    for taken, (place, _) in enumerate(ends, start=1):
        decoded.clear()
        rest = list(islice(stream().endless(*place), 12 - taken))
        assert identities([batch for _, batch in rest]) == identities(
            [batch for _, batch in ends[taken:]]
        )
        # Nothing before the place; after it, what is read ahead too, or kept from before.
        assert len(decoded) <= 5 * (12 - taken + stream_module.AHEAD)


def test_kept_images_are_decoded_once(made: Params, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[bytes] = []

    def count(data: bytes) -> Any:
        decoded.append(data)
        return decode_image(data)

    monkeypatch.setattr(stream_module, "decode_image", count)
    # Of shards with 12 and 8 images the second comes first here, and leaves no room for the other.
    for keep, expected in ((0, 60), (12, 44), (20, 20)):
        decoded.clear()
        stream = ImageStream(tars(made), 5, 8, seed=0, keep=keep)
        for number in range(3):
            assert len(list(stream.epoch(number))) == 4
        assert len(decoded) == expected


def test_shares_of_the_stream_make_up_its_batches(made: Params) -> None:
    whole = list(ImageStream(tars(made), 4, 8, seed=0).epoch(1))
    shares = [
        list(ImageStream(tars(made), 4, 8, seed=0, share=Share(index, 2)).epoch(1))
        for index in range(2)
    ]
    for (pixels, labels), *parts in zip(whole, *shares, strict=True):
        assert [len(part[1]) for part in parts] == [2, 2]
        assert torch.equal(torch.cat([part[0] for part in parts]), pixels)
        assert torch.equal(torch.cat([part[1] for part in parts]), labels)


@pytest.mark.parametrize("damage", ["cut", "text", "link"])
def test_a_stream_of_a_bad_tar_is_an_error(made: Params, damage: str) -> None:
    path = tars(made)[1]
    data = bytearray(path.read_bytes())
    if damage == "cut":
        del data[len(data) // 2 + 100 :]
    elif damage == "text":
        data[:] = b"no tar at all " * 100
    else:
        data[156] = ord("2")
    path.write_bytes(data)
    with pytest.raises(BadShardError, match=path.name):
        list(ImageStream(tars(made), 5, 8, seed=0).epoch(0))


# One student.


def test_the_files_of_a_trained_student(made: Params) -> None:
    job = job_of(made)
    assert not is_trained(job)
    last = distill(job, "cpu", lambda images: None)
    assert is_trained(job)
    assert list(tree(students(made))) == [
        "student-0.csv",
        "student-0.json",
        "student-0.safetensors",
    ]
    record = json.loads(job.record.read_bytes())
    assert record["spec"] == json.loads(json.dumps(job.spec()))
    assert record["spec_sha256"] == digest_json(job.spec())
    with job.log.open() as file:
        log = list(csv.DictReader(file))
    assert [int(row["step"]) for row in log] == [1, 2, 3, 4, 5, 6]
    assert float(log[-1]["loss"]) == pytest.approx(last["loss"], rel=1e-4)
    assert all(0 <= float(row[name]) <= 1 for row in log for name in ("agreement", "accuracy"))
    network = build_network(made["student"]["source"], made["student"]["arguments"], "student")
    load_weights(network, job.output, "student")


def test_progress_adds_up_to_the_images(made: Params) -> None:
    told: list[float] = []
    job = job_of(made)
    distill(job, "cpu", told.append)
    assert sum(told) == job.images == 30


def test_training_is_deterministic(made: Params) -> None:
    job = job_of(made)
    distill(job, "cpu", lambda images: None)
    first = tree(students(made))
    torch.manual_seed(99)
    distill(job, "cpu", lambda images: None)
    assert tree(students(made)) == first
    distill(replace(job, seed=1), "cpu", lambda images: None)
    assert tree(students(made)) != first


def test_a_student_learns(tiny: Params) -> None:
    easy = {
        "steps": 60,
        "batch_size": 10,
        "learning_rate": 0.5,
        "shuffle": 50,
        "shift": 0,
        "mixup": 0.0,
        "cutmix": 0.0,
    }
    changes = {f"distillation.{name}": value for name, value in easy.items()}
    params = changed(tiny, {"synthesis.iterations": 40, **changes})
    make(params)
    job = job_of(params)
    last = distill(job, "cpu", lambda images: None)
    with job.log.open() as file:
        first = next(csv.DictReader(file))
    assert last["loss"] < 0.05 * float(first["loss"])
    assert (last["agreement"], last["accuracy"]) == (1, 1)


FINE = {
    "distillation.ema": 0.9,
    "distillation.cutout": 3,
    "distillation.precision": "bfloat16",
}


@pytest.mark.parametrize(
    "settings", [{}, {"student.arguments": {"width": 4, "dropout": 0.5}}, FINE]
)
@pytest.mark.parametrize("stop", [1, 2, 3, 4, 5])
def test_a_student_goes_on_from_its_checkpoint_to_the_same_bytes(
    made: Params,
    stop: int,
    settings: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """4 batches make an epoch, and each second step a checkpoint: a stop at 5 is in the second."""
    params = changed(made, settings)
    job = job_of(params)
    distill(job, "cpu", lambda images: None)
    undisturbed = tree(students(params))
    cut = replace(job, output=tmp_path / "cut" / job.output.name)
    real = Training.step
    steps: list[int] = []

    def failing(*arguments: Any) -> Any:
        if len(steps) == stop:
            raise KeyboardInterrupt
        steps.append(stop)
        return real(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Training, "step", failing)
        with pytest.raises(KeyboardInterrupt):
            distill(cut, "cpu", lambda images: None)
    assert cut.checkpoint.exists() == (stop >= 2)
    assert not is_trained(cut)
    torch.manual_seed(4)
    told: list[float] = []
    distill(cut, "cpu", told.append)
    assert told[0] == stop // 2 * 2 * 5
    assert sum(told) == 30
    assert tree(tmp_path / "cut") == undisturbed


def test_a_checkpoint_of_other_settings_is_not_taken(made: Params) -> None:
    job = job_of(made)
    distill(job, "cpu", lambda images: None)
    expected = tree(students(made))
    other = job_of(changed(made, {"distillation.learning_rate": 0.01}))
    torch.save({"spec_sha256": digest_json(other.spec())}, job.checkpoint)
    distill(job, "cpu", lambda images: None)
    assert tree(students(made)) == expected


@pytest.mark.parametrize("content", [b"", b"half a file"])
def test_a_broken_checkpoint_is_not_taken(made: Params, content: bytes) -> None:
    job = job_of(made)
    distill(job, "cpu", lambda images: None)
    expected = tree(students(made))
    job.checkpoint.write_bytes(content)
    distill(job, "cpu", lambda images: None)
    assert tree(students(made)) == expected


def test_a_checkpoint_with_one_wrong_byte_is_not_taken(
    made: Params, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``torch.load`` reads such a file without a word."""
    job = job_of(made)
    distill(job, "cpu", lambda images: None)
    expected, real = tree(students(made)), Training.step
    job.record.unlink()
    steps: list[int] = []

    def failing(*arguments: Any) -> Any:
        if len(steps) == 4:
            raise KeyboardInterrupt
        steps.append(1)
        return real(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Training, "step", failing)
        with pytest.raises(KeyboardInterrupt):
            distill(job, "cpu", lambda images: None)
    data = bytearray(job.checkpoint.read_bytes())
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        sizes = {info.file_size: archive.read(info) for info in archive.infolist()}
    data[data.index(sizes[max(sizes)]) + 7] ^= 0x40  # in a number of the largest tensor
    job.checkpoint.write_bytes(data)
    distill(job, "cpu", lambda images: None)
    assert tree(students(made)) == expected


def test_checkpoints_do_not_change_the_result(made: Params) -> None:
    distill(job_of(made), "cpu", lambda images: None)
    expected = tree(students(made))
    often = job_of(changed(made, {"distillation.checkpoint_every": 1}))
    assert is_trained(often)
    distill(often, "cpu", lambda images: None)
    assert tree(students(made)) == expected


def test_the_average_fades_in_and_is_what_is_published(made: Params) -> None:
    plain, job = job_of(made), job_of(changed(made, {"distillation.ema": 0.3}))
    states: list[dict[str, Tensor]] = []

    def record(images: float) -> None:
        state = torch.load(checkpoint, weights_only=True) if checkpoint.exists() else None
        if state is not None and state["progress"]["step"] > len(states):
            states.append(state["training"]["student"])

    # A report follows each step, so that checkpoints after every step show all but the last.
    each = job.training.model_copy(update={"checkpoint_every": 1})
    checkpoint = job.checkpoint
    distill(replace(job, training=each), "cpu", record)
    averaged = load_file(job.output)
    distill(plain, "cpu", lambda images: None)
    states.append(load_file(plain.output))
    assert len(states) == 6
    torch.manual_seed(job.seed)
    expected = build_network(job.student.source, job.student.arguments, "student").state_dict()
    for number, state in enumerate(states):
        decay = min(0.3, (1 + number) / (10 + number))
        for name, tensor in state.items():
            if tensor.is_floating_point():
                expected[name] = decay * expected[name] + (1 - decay) * tensor
            else:
                expected[name] = tensor
    for name, tensor in expected.items():
        assert torch.allclose(averaged[name], tensor, atol=1e-6), name
    assert not torch.allclose(averaged["0.weight"], states[-1]["0.weight"], atol=1e-6)


@pytest.mark.slow
def test_a_compiled_student_is_near_the_eager_one_and_goes_on_exactly(
    made: Params, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    eager = job_of(made)
    expected = distill(eager, "cpu", lambda images: None)
    job = job_of(changed(made, {"distillation.compile": True}))
    found = distill(job, "cpu", lambda images: None)
    assert "does not compile" not in caplog.text
    assert found["loss"] == pytest.approx(expected["loss"], rel=1e-3)
    undisturbed = tree(students(made))
    cut = replace(job, output=tmp_path / "cut" / job.output.name)

    def stop(images: float) -> None:
        if cut.checkpoint.exists():
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        distill(cut, "cpu", stop)
    distill(cut, "cpu", lambda images: None)
    assert tree(tmp_path / "cut") == undisturbed


@pytest.mark.parametrize("adversarial", [0.0, 0.3])
def test_a_student_that_does_not_compile_is_trained_uncompiled(
    made: Params,
    adversarial: float,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    made = changed(made, {"distillation.adversarial": adversarial})
    distill(job_of(made), "cpu", lambda images: None)
    expected = load_file(job_of(made).output)

    def broken(teacher: nn.Module, student: nn.Module, images: Tensor, *others: Any) -> Any:
        student(images)
        raise RuntimeError("no C++ compiler")

    monkeypatch.setattr(loss_gradient, "compiled_compare", lambda: broken)
    job = job_of(changed(made, {"distillation.compile": True}))
    distill(job, "cpu", lambda images: None)
    assert caplog.text.count("is trained uncompiled: no C++ compiler") == 1
    assert not is_trained(job_of(made)) and is_trained(job)
    found = load_file(job.output)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_a_full_disk_is_no_reason_to_train_uncompiled(
    made: Params, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The student would be another one, and nothing would tell."""

    def broken(*arguments: Any) -> Any:
        raise RuntimeError(
            "CppCompileError: C++ compile error\nwriting x.o: No space left on device"
        )

    monkeypatch.setattr(loss_gradient, "compiled_compare", lambda: broken)
    job = job_of(changed(made, {"distillation.compile": True}))
    with pytest.raises(OSError, match="No space left on device: compiling needs some"):
        distill(job, "cpu", lambda images: None)
    assert not is_trained(job)


def test_a_student_may_start_from_another(made: Params, tmp_path: Path) -> None:
    job = job_of(made)
    distill(job, "cpu", lambda images: None)
    on = replace(job, output=tmp_path / "on" / "student.safetensors", start=job.output)
    training = job.training.model_copy(update={"steps": 1, "learning_rate": 1e-9})
    distill(replace(on, training=training), "cpu", lambda images: None)
    before, after = load_file(job.output), load_file(on.output)
    weights = [name for name in before if name.endswith("weight")]
    assert weights
    assert all(torch.allclose(before[name], after[name], atol=1e-6) for name in weights)


def test_a_student_is_trained_if_its_files_are_intact(made: Params) -> None:
    job = job_of(made)
    distill(job, "cpu", lambda images: None)
    for path in (job.output, job.record, job.log):
        content = path.read_bytes()
        path.unlink()
        assert not is_trained(job)
        path.write_bytes(content)
        assert is_trained(job)
    data = bytearray(job.output.read_bytes())
    data[-1] ^= 1
    job.output.write_bytes(data)
    assert not is_trained(job)


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b"null", b"{"])
def test_a_record_that_cannot_be_read_is_no_record(made: Params, content: bytes) -> None:
    job = job_of(made)
    distill(job, "cpu", lambda images: None)
    job.record.write_bytes(content)
    assert not is_trained(job)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("distillation.steps", 7),
        ("distillation.temperature", 5.0),
        ("distillation.mixup", 0.1),
        ("distillation.batch_size", 4),
        ("distillation.cutout", 2),
        ("distillation.ema", 0.5),
        ("distillation.precision", "bfloat16"),
        ("student.arguments", {"width": 5}),
        ("teacher.input.mean", [0.41]),
        ("synthesis.iterations", 5),
    ],
)
def test_what_changes_a_student_makes_it_stale(made: Params, key: str, value: Any) -> None:
    distill(job_of(made), "cpu", lambda images: None)
    other = changed(made, {key: value})
    make(other)
    assert not is_trained(job_of(other))


def test_more_students_leave_the_first_as_it_is(made: Params) -> None:
    distill(job_of(made), "cpu", lambda images: None)
    config, teacher = load(changed(made, {"distillation.seeds": [0, 1]}))
    assert [is_trained(job) for job in student_jobs(config, teacher)] == [True, False]


# All students.


def test_students_are_trained_on_record(made: Params) -> None:
    params = changed(made, {"distillation.seeds": [0, 3], "distillation.noise_baseline": True})
    params["distillation"]["procedural_baseline"] = True
    assert len(train(params)) == 4
    expected = [
        f"{name}.{kind}"
        for name in ("noise-0", "procedural-0", "student-0", "student-3")
        for kind in ("csv", "json", "safetensors")
    ]
    before = tree(students(params))
    assert list(before) == [CLAIM, *expected]
    assert train(params) == []
    assert tree(students(params)) == before
    (students(params) / "student-3.safetensors").unlink()
    assert len(train(params)) == 1
    assert tree(students(params)) == before
    assert train(made) == []
    assert list(tree(students(params))) == [
        CLAIM,
        *(name for name in expected if name.startswith("student-0")),
    ]


def test_the_noise_is_as_many_images_that_nothing_was_made_of(made: Params) -> None:
    params = changed(made, {"distillation.noise_baseline": True, "adaptive.rounds": 1})
    make(params)
    train(params)
    config, teacher = load(params)
    noise = baseline_config(config, NOISE)
    root = Path(noise.paths.dataset)
    assert verify(noise, teacher, 0.0, lambda images: None) == []
    assert verify(config, teacher, 0.0, lambda images: None) == []
    images, labels = next(ordered_batches(sorted((root / "train").glob("*.tar")), 100))
    assert len(images) == 26
    assert sorted(Counter(labels.tolist()).values()) == [8, 9, 9]
    expected = np.clip(np.random.default_rng(0).normal(0.4, 0.3, 100000), 0, 1)  # of teacher.input
    assert images.float().mean().item() / 255 == pytest.approx(expected.mean(), abs=0.02)
    assert images.float().std().item() / 255 == pytest.approx(expected.std(), abs=0.02)


def test_the_teacher_selects_procedural_pictures(made: Params) -> None:
    """As many as the dataset has, in its classes. A shard does not depend on earlier ones."""
    changes = {"distillation.procedural_baseline": True, "adaptive.rounds": 1}
    params = changed(made, {**changes, "synthesis.objective.units": "teacher"})
    make(params)
    assert len(train(params)) == 2
    config, teacher = load(params)
    selected = baseline_config(config, PROCEDURAL)
    root = Path(selected.paths.dataset)
    assert root.name == "dataset-procedural" and not root.with_name("dataset-noise").exists()
    assert verify(selected, teacher, 0.9, lambda images: None) == []
    images, labels = next(ordered_batches(sorted((root / "train").glob("*.tar")), 100))
    wanted = Dataset.planned(config).plan.labels
    assert labels.tolist() == wanted.tolist() and len(images) == 26
    before = tree(root)
    with open_runner(selected) as run:
        (root / "metadata" / "000001.json").unlink()
        assert len(synthesize(selected, teacher, run)) == 1
    assert tree(root) == before
    assert train(params) == []
    assert (students(params) / "procedural-0.safetensors").is_file()
    train(changed(params, {"distillation.procedural_baseline": False}))
    assert not (students(params) / "procedural-0.safetensors").exists()


def test_noise_for_a_teacher_of_pixels_to_255_is_not_black(tiny: Params) -> None:
    """Such a std tells nothing of the data."""
    config = parse_params(changed(tiny, {"teacher.input.std": [1 / 255]}))
    assert baseline_config(config, NOISE).synthesis.objective.units == "image"


def test_noise_is_not_chosen_among(tiny: Params) -> None:
    """It would never be as sure as images are to be, and its choice would be no longer noise."""
    rules = {
        "synthesis.min_confidence": 0.9,
        "synthesis.confirmed": True,
        "synthesis.max_similarity": 0.5,
        "synthesis.keep": 0.5,
    }
    plain = baseline_config(parse_params(tiny), NOISE).synthesis
    assert baseline_config(parse_params(changed(tiny, rules)), NOISE).synthesis == plain


def test_nobody_changes_a_dataset_that_students_learn_from(made: Params) -> None:
    config, teacher = load(changed(made, {"distillation.noise_baseline": True}))
    noise = dataset(made).with_name("dataset-noise")
    other = changed(made, {"synthesis.seed": 5})

    def run(work: Any, jobs: Any, text: str) -> list[Any]:
        if text == "distillation":
            for path in (dataset(made), noise):
                with pytest.raises(UserError, match="in use by another run"):
                    make(changed(other, {"paths.dataset": str(path)}))
            return []
        return [work(job, "cpu", lambda images: None) for job in jobs]

    distill_students(config, teacher, run)
    assert make(other) == [0, 1]


@pytest.mark.parametrize("half", [False, True])
def test_students_of_images_that_a_range_run_changed_meanwhile_do_not_count(
    made: Params, half: bool
) -> None:
    config, teacher = load(made)
    others, their_teacher = load(changed(made, {"synthesis.seed": 7}))

    def run(work: Any, jobs: list[Any], description: str) -> list[Any]:
        rows = [work(job, "cpu", lambda images: None) for job in jobs]
        with open_runner(others) as other:
            with pytest.raises(TryAgainError, match="by a run with other parameters"):
                synthesize(others, their_teacher, other, range(0, 1))
            (dataset(made) / LOCK).unlink()  # as where no lock can be taken
            synthesize(others, their_teacher, other, range(0, 1))
        if half:
            (dataset(made) / "metadata" / "000000.json").unlink()
        return rows

    with pytest.raises(TryAgainError, match="was changed while students learnt from it"):
        distill_students(config, teacher, run)
    make(made)
    assert not is_trained(job_of(made))


def test_a_dataset_where_nothing_can_be_written_is_read_without_a_lock() -> None:
    nowhere = Path("/proc/dreamshard/dataset")  # not even root can write there
    with reading(nowhere, "paths.dataset", "digest"):
        pass
    with (
        pytest.raises(
            NoLockError,
            match=r"paths.dataset .* cannot be locked by .*/\.dreamshard\.lock \(No such",
        ),
        locked(nowhere, "paths.dataset", "digest"),
    ):
        pass


def test_a_checkpoint_of_a_stopped_run_to_other_parameters_is_swept_up(made: Params) -> None:
    train(made)
    left = students(made) / "student-0.checkpoint"
    saved = {"spec_sha256": "", "precision": "", "training": {}, "progress": {}}
    torch.save(saved, left)
    assert train(made) == []
    assert not left.exists()


@pytest.mark.parametrize("end", ["", "/", "//"])
def test_the_noise_lies_beside_the_dataset(tiny: Params, end: str) -> None:
    path = tiny["paths"]["dataset"]
    config = parse_params(changed(tiny, {"paths.dataset": path + end}))
    noise = Path(baseline_config(config, NOISE).paths.dataset)
    assert noise.parent == Path(path).parent and noise != Path(path)


def test_students_need_a_dataset(tiny: Params) -> None:
    with pytest.raises(UserError, match=r"2 of 2 .* first 000000 .missing.: run synthesize first"):
        train(tiny)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"student.arguments": {"classes": 4}},
            "the student returns 4 logits: .* set student.arguments",
        ),
        ({"student.source": "nowhere.py:net"}, "student.source"),
        ({"distillation.imitation": 1.0}, "distillation.imitation must be 0"),
    ],
)
def test_students_that_cannot_be(made: Params, changes: dict[str, Any], said: str) -> None:
    if "distillation.imitation" in changes:
        flat = made["student"]["source"].replace("classifier", "without_batchnorm")
        changes = {**changes, "student.source": flat, "student.arguments": {}}
    with pytest.raises(UserError, match=said):
        train(changed(made, changes))


def test_a_batch_larger_than_the_dataset_takes_all_images(
    made: Params, caplog: pytest.LogCaptureFixture
) -> None:
    train(changed(made, {"distillation.batch_size": 20}))
    weights = tree(students(made))
    train(changed(made, {"distillation.batch_size": 500}))
    assert "distillation.batch_size is 500, but the dataset has 20 images" in caplog.text
    assert tree(students(made)) == weights  # the same job: nothing was trained again
    assert job_of(changed(made, {"distillation.batch_size": 19})).training.batch_size == 19


def test_a_round_student_takes_all_images_there_are(
    tiny: Params, caplog: pytest.LogCaptureFixture
) -> None:
    make(changed(tiny, {"adaptive.rounds": 1, "adaptive.training.batch_size": 128}))
    assert "adaptive.training.batch_size is 128, but round 1 follows 20 images" in caplog.text
    make(changed(tiny, {"adaptive.rounds": 1, "adaptive.training.batch_size": 20}))
    assert caplog.text.count("adaptive.training.batch_size") == 1


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"synthesis.images": 1}, "distillation needs 2 images, but the dataset has 1"),
        ({"synthesis.images": 3, "distillation.adversarial": 0.1}, "distillation needs 4 images"),
    ],
)
def test_a_dataset_too_small_for_any_step(tiny: Params, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        train(changed(tiny, changes))


def test_a_loss_that_is_not_finite_is_an_error(made: Params) -> None:
    with pytest.raises(JobsFailed, match=r"lower distillation\.learning_rate"):
        train(changed(made, {"distillation.learning_rate": 1e30}))
    assert not list(students(made).glob("*.safetensors"))


def test_students_never_learn_from_a_mix_of_old_and_new(tiny: Params) -> None:
    make(tiny)
    newer = changed(tiny, {"synthesis.iterations": 5})
    make(newer, range(0, 1))
    config, teacher = load(newer)
    with open_runner(config) as run, pytest.raises(UserError, match=r"1 of 2 .* 000001 \(stale: "):
        distill_students(config, teacher, run)


def test_a_tar_that_was_changed_is_not_learnt_from(made: Params) -> None:
    """Also one of the same size, which counts as complete."""
    config, teacher = load(made)
    tar = dataset(made) / "train" / "000001.tar"
    data = tar.read_bytes()
    tar.write_bytes(data.replace(b'"cls": 0', b'"cls": 1', 1))
    assert len(tar.read_bytes()) == len(data) and tar.read_bytes() != data
    with open_runner(config) as run, pytest.raises(UserError, match="run verify --repair"):
        distill_students(config, teacher, run)
    assert list(Path(made["paths"]["students"]).glob("*.safetensors")) == []
    tar.write_bytes(data)
    with open_runner(config) as run:
        assert len(distill_students(config, teacher, run)) == 1


def test_a_round_does_not_learn_from_a_tar_that_was_changed(made: Params) -> None:
    tar = dataset(made) / "train" / "000000.tar"
    tar.write_bytes(tar.read_bytes().replace(b'"cls": 0', b'"cls": 1', 1))
    with pytest.raises(UserError, match=r"student-of-round-1: .*\.tar is missing, or was changed"):
        make(changed(made, {"adaptive.rounds": 1}))
