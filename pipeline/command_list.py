"""The commands of the command line: their names, help texts and options. Imports no command."""

from __future__ import annotations

import argparse

from pipeline.argument_types import devices, positive, rate, shape
from pipeline.command import Command
from pipeline.reader_options import export_options, report_options


def _init_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("directory", metavar="DIR", help="an empty or a new directory")
    parser.add_argument(
        "--force", action="store_true", help="also write into a directory that holds other files"
    )
    parser.add_argument(
        "--example", choices=["digits"], help="write the built-in example instead of your teacher"
    )
    parser.add_argument(
        "--source",
        help="the teacher: path/to/nets.py:factory, or a source such as timm:NAME",
    )
    parser.add_argument(
        "--weights", metavar="FILE", help="its .safetensors, .pt or .pth file, or `pretrained`"
    )
    parser.add_argument("--classes", type=positive, metavar="N", help="its number of classes")
    parser.add_argument(
        "--input", type=shape, metavar="CxHxW", help="the images it takes, as in 3x32x32"
    )
    parser.add_argument(
        "--data", metavar="FILE", help="a tar of real images (png and cls), to evaluate with"
    )


def _probe_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--seconds", type=float, default=120.0, help="how long to try (default: 120)"
    )
    parser.add_argument(
        "--write", action="store_true", help="write the findings into the parameter file"
    )
    parser.add_argument(
        "--images",
        metavar="TAR",
        help="a tar of real images (png and cls), to compare teacher.input.mean and std with",
    )


def _plan_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--list", action="store_true", help="also print one line for each shard")
    parser.add_argument(
        "--devices",
        type=devices,
        nargs="+",
        default=[1],
        metavar="N",
        help="the numbers of devices to show times for (default: 1)",
    )
    speed = parser.add_mutually_exclusive_group()
    speed.add_argument(
        "--probe",
        action="store_true",
        help="measure the speed of this machine's devices, unless it was measured for this job",
    )
    speed.add_argument(
        "--images-per-second", type=rate, metavar="X", help="the speed of one device, if known"
    )


def _synthesize_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--shards", metavar="FIRST:END", help="make only these shards, as in 0:8 for 0 to 7"
    )
    parser.add_argument(
        "--keep",
        action="store_true",
        help="refuse to replace shards that other parameters made",
    )


def _distill_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--keep",
        action="store_true",
        help="refuse to replace students that other parameters made",
    )


def _verify_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--repair", action="store_true", help="make the damaged shards and files again"
    )
    parser.add_argument(
        "--agreement",
        type=float,
        default=0.9,
        metavar="SHARE",
        help="the least share of labels that the teacher must confirm (default: 0.9)",
    )

    parser.add_argument(
        "--key", metavar="FILE", help="the public key of the signer; checks the signature too"
    )


def _sign_options(parser: argparse.ArgumentParser) -> None:
    key = parser.add_mutually_exclusive_group(required=True)
    key.add_argument("--key", metavar="FILE", help="the private key (Ed25519, PEM)")
    key.add_argument(
        "--new-key", metavar="FILE", help="make a private key FILE and a public key FILE.pub"
    )


def _authenticate_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("dataset", metavar="DIR", help="the directory or URL of the dataset")
    parser.add_argument(
        "--key", metavar="FILE", required=True, help="the public key of the signer whom you trust"
    )


def _status_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--teacher", action="store_true", help="load the teacher, and compare it with the records"
    )


COMMANDS = (
    Command(
        name="init",
        function="init.run",
        summary="write params.yaml and dvc.yaml for your own teacher",
        description="Write params.yaml and dvc.yaml for your own teacher into a directory. "
        "An existing file is never replaced.",
        example="init mine --source nets.py:resnet --weights resnet.pt --classes 10 --input "
        "3x32x32",
        add=_init_options,
        reads_params=False,
    ),
    Command(
        name="probe",
        function="probe.run_probe",
        summary="try the teacher for two minutes and suggest parameters",
        description="Invert a few images with several settings and print what fits this teacher. "
        "Makes no dataset.",
        example="probe --seconds 60 --write",
        add=_probe_options,
    ),
    Command(
        name="plan",
        function="plan.run_plan",
        summary="print what would be made, and what it would cost",
        description="Print the number of images, shards and bytes, and with a speed the time. "
        "Makes no dataset. Only --probe loads the teacher; it keeps its measurements in the "
        "reports.",
        example="plan --probe --devices 1 8",
        add=_plan_options,
    ),
    Command(
        name="synthesize",
        function="dataset.run_synthesize",
        summary="make the shards that are missing or stale",
        description="Make the shards that are missing or stale, and the files of the whole "
        "dataset. A stopped run continues where it was when the command runs again.",
        example="synthesize --set synthesis.images=100",
        add=_synthesize_options,
    ),
    Command(
        name="finalize",
        function="dataset.run_finalize",
        summary="write the files of the whole dataset, after `synthesize --shards`",
        description="Write the files of the whole dataset once every shard is complete. "
        "Only runs of `synthesize --shards` need this command.",
        example="finalize",
    ),
    Command(
        name="verify",
        function="verify.run_verify",
        summary="read the dataset again and list every problem",
        description="Read every byte of the dataset, compare it with the records and ask the "
        "teacher about each image. Prints one line for each problem and exits with 1 if there is "
        "one.",
        example="verify --repair",
        add=_verify_options,
    ),
    Command(
        name="sign",
        function="signature.run_sign",
        summary="sign the dataset with a key of yours",
        description="Sign the digests of all files, and put the signature into the dataset. "
        "Run verify first. A dataset that changes must be signed again.",
        example="sign --new-key mine.key",
        add=_sign_options,
    ),
    Command(
        name="authenticate",
        function="signature.run_authenticate",
        summary="check the signature and the files of somebody's dataset",
        description="Check who signed a dataset, and that no file was changed since. Needs no "
        "parameters and no teacher. Exits with 1 if something differs.",
        example="authenticate data/synthetic --key mine.key.pub",
        add=_authenticate_options,
        reads_params=False,
    ),
    Command(
        name="export",
        function="export.run_export",
        summary="write a finished dataset in another format",
        description="Write the images of a finished dataset as NumPy arrays, class folders or "
        "Parquet, or upload the dataset to the Hugging Face Hub. Each shard is checked against "
        "the provenance. Needs no parameters and no teacher. Nothing is overwritten.",
        example="export data/synthetic --to npz calibration --images 256 --normalised",
        add=export_options,
        reads_params=False,
    ),
    Command(
        name="status",
        function="dataset.run_status",
        summary="count the complete, running, failed, stale and missing shards",
        description="Count the complete, running, failed, stale and missing shards, and estimate "
        "the time left. Reads only the records, imports no factory and changes nothing.",
        example="status",
        add=_status_options,
    ),
    Command(
        name="distill",
        function="students.run_distill",
        summary="train the students on the dataset",
        description="Train the students that are missing or stale. No student sees a real image. "
        "A stopped run continues from its last checkpoint when the command runs again.",
        example="distill --set distillation.steps=1000",
        add=_distill_options,
    ),
    Command(
        name="measure",
        function="students.run_measure",
        summary="measure the dataset and a student without real images",
        description="Measure how varied the images are, compare their BatchNorm statistics with "
        "the teacher's, and measure the first student if it was trained. Needs no real images.",
        example="measure",
    ),
    Command(
        name="evaluate",
        function="students.run_evaluate",
        summary="measure teacher and students on real images",
        description="Measure the accuracy of the teacher and of the students on the real images "
        "of evaluation.data. Of the other commands only `measure` reads these images, if "
        "evaluation.verifier is set.",
        example="evaluate --set evaluation.data=real.tar",
    ),
    Command(
        name="calibrate",
        function="calibrate.run_calibrate",
        summary="quantise the teacher with the dataset, and with noise, and compare",
        description="Quantise the teacher with ONNX Runtime, once calibrated with synthetic images "
        "and once with noise, and print how often each copy agrees with the teacher. Needs the "
        "extra calibrate.",
        example="calibrate --set calibration.activation_bits=4",
    ),
    Command(
        name="summary",
        function="students.run_summary",
        summary="print the results in a few lines",
        description="Print the results of the last run in a few lines. Reads only the reports.",
        example="summary",
    ),
    Command(
        name="report",
        function="report.run_report",
        summary="write the results as one HTML page, or compare two",
        description="Write one HTML page with the images, figures, curves, doubts and provenance "
        "of a run, or of two runs next to each other. Reads the records and reports that exist, "
        "and needs no teacher. The page loads nothing from a network.",
        example="report params.yaml other/params.yaml",
        add=report_options,
        reads_params=False,
    ),
)
