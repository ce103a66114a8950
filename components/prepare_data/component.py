"""KFP signature of `prepare_data`."""

from kfp import dsl
from kfp.dsl import Dataset, Output

from components.image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def prepare_data(
    data: Output[Dataset], dataset: str, data_dir: str, image_size: int, limit: int, split_seed: int,
    data_checksum: str, fingerprint: str,
) -> str:
    """Read a dataset and write its disjoint, checksummed splits. Returns the checksum.

    The fingerprint is not read: it makes the cache miss when the data have changed under the same name.
    """
    from pathlib import Path

    from components.context import step
    from components.prepare_data.step import run

    with step("prepare_data"):
        metadata = run(Path(data.path), dataset=dataset, data_dir=data_dir, image_size=image_size, limit=limit,
                       split_seed=split_seed, data_checksum=data_checksum)
    data.metadata.update({key: metadata[key] for key in ("dataset", "checksum", "levels", "shape", "classes")})
    data.metadata["splits"] = {name: split["n"] for name, split in metadata["splits"].items()}
    return metadata["checksum"]
