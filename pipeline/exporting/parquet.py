"""The format ``parquet``: one file of rows, with the image feature of Hugging Face."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.dataset.layout import PNG
from pipeline.exporting.image_folder import need_png
from pipeline.exporting.new_folder import in_new_folder
from pipeline.exporting.source import Source

ROWS = "train.parquet"
MOST_ROWS = 1000  # of a row group
MOST_BYTES = 2**25  # of the images of a row group; one image more may exceed it
_COLUMNS = [
    ("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
    ("label", pa.int64()),
    ("key", pa.string()),
]
_COMPRESSION = {"image.bytes": "none", "image.path": "zstd", "label": "zstd", "key": "zstd"}


@in_new_folder
def write_parquet(source: Source, folder: Path) -> str:
    """Write the columns ``image``, ``label`` and ``key``. The PNG files are those of the shards.

    Without labels there is no column ``label``.

    Raises:
        UserError: the images are no PNG files.
    """
    need_png(source, "parquet")
    features = {
        "image": {"_type": "Image"},
        "label": {"_type": "ClassLabel", "names": source.class_names},
        "key": {"_type": "Value", "dtype": "string"},
    }
    columns = {name: kind for name, kind in _COLUMNS if source.labelled or name != "label"}
    facts = json.dumps({"info": {"features": {name: features[name] for name in columns}}})
    schema = pa.schema(list(columns.items())).with_metadata({"huggingface": facts})
    rows: list[dict[str, Any]] = []
    size = 0
    # PNG files are compressed already, and no value but the label repeats.
    kept = {name: how for name, how in _COMPRESSION.items() if name.partition(".")[0] in columns}
    repeated = [name for name in columns if name == "label"]
    how: dict[str, Any] = {"compression": kept, "use_dictionary": repeated}
    with pq.ParquetWriter(folder / ROWS, schema, **how) as writer:
        for sample in source.samples():
            image = {"bytes": sample.data, "path": f"{sample.key}.{PNG}"}
            rows.append({"image": image, "label": sample.label, "key": sample.key})
            size += len(sample.data)
            if len(rows) == MOST_ROWS or size > MOST_BYTES:
                writer.write_table(pa.Table.from_pylist(rows, schema=schema))
                rows, size = [], 0
        if rows:
            writer.write_table(pa.Table.from_pylist(rows, schema=schema))
    label = ", `label` (with the names of the classes)" if source.labelled else ""
    return f"""`{ROWS}` has the columns `image`{label} and `key`.

```python
import datasets

data = datasets.load_dataset("parquet", data_files="{ROWS}", split="train")
```"""
