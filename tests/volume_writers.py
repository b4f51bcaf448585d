"""Volumes as other programs lay them out, for tests of the readers."""

import json
import uuid

import h5py
import numpy as np
import tifffile

IMARIS_CHUNK = (4, 32, 32)


def an_ome_set(folder, voxels, **how):
    """Two files that hold the planes of one volume, as Micro-Manager splits it."""
    half = len(voxels) // 2
    parts = {"a_0.ome.tif": voxels[:half], "a_1.ome.tif": voxels[half:]}
    names = {name: f"urn:uuid:{uuid.uuid4()}" for name in parts}
    data, first = "", 0
    for name, planes in parts.items():
        for ifd in range(len(planes)):
            data += (
                f'<TiffData FirstZ="{first}" FirstC="0" FirstT="0" IFD="{ifd}" '
                f'PlaneCount="1"><UUID FileName="{name}">{names[name]}</UUID>'
                "</TiffData>"
            )
            first += 1
    z, y, x = voxels.shape
    for name, planes in parts.items():
        xml = (
            '<?xml version="1.0" encoding="UTF-8"?><OME xmlns='
            '"http://www.openmicroscopy.org/Schemas/OME/2016-06" '
            f'UUID="{names[name]}"><Image ID="Image:0"><Pixels ID="Pixels:0" '
            f'DimensionOrder="XYZCT" Type="uint16" SizeX="{x}" SizeY="{y}" SizeZ="{z}" '
            'SizeC="1" SizeT="1" PhysicalSizeX="500" PhysicalSizeXUnit="nm" '
            'PhysicalSizeY="0.5" PhysicalSizeZ="2"><Channel ID="Channel:0:0" '
            f'SamplesPerPixel="1"/>{data}</Pixels></Image></OME>'
        )
        tifffile.imwrite(
            folder / name,
            planes,
            photometric="minisblack",
            description=xml,
            metadata=None,
            **how,
        )
    return folder / "a_0.ome.tif"


def letters(text):
    return np.array([c.encode() for c in str(text)], "S1")


def write_imaris(path, channels, **how):
    """Two levels; every array is filled up to whole chunks, as Imaris does."""
    with h5py.File(path, "w") as file:
        image = file.create_group("DataSetInfo/Image")
        for number, (low, high) in enumerate(((10, 45), (0, 25), (-11, 11))):
            image.attrs[f"ExtMin{number}"] = letters(low)
            image.attrs[f"ExtMax{number}"] = letters(high)
        image.attrs["Unit"] = letters("um")
        for level in range(2):
            for number, voxels in enumerate(channels):
                voxels = voxels[:, :: 2**level, :: 2**level]
                group = file.create_group(
                    f"DataSet/ResolutionLevel {level}/TimePoint 0/Channel {number}"
                )
                filled = [
                    -(-n // c) * c
                    for n, c in zip(voxels.shape, IMARIS_CHUNK, strict=True)
                ]
                room = np.full(filled, 12345, np.uint16)
                room[tuple(slice(n) for n in voxels.shape)] = voxels
                for axis, extent in zip("ZYX", voxels.shape, strict=True):
                    group.attrs[f"ImageSize{axis}"] = letters(extent)
                group.create_dataset("Data", data=room, chunks=IMARIS_CHUNK, **how)
    return path


def zarr2(path, voxels, chunks, separator="/"):
    import tensorstore as ts

    store = ts.open(
        {
            "driver": "zarr",
            "kvstore": f"file://{path}/",
            "metadata": {
                "shape": list(voxels.shape),
                "chunks": list(chunks),
                "dtype": voxels.dtype.str,
                "compressor": {"id": "blosc", "cname": "lz4"},
                "dimension_separator": separator,
            },
        },
        create=True,
    ).result()
    store.write(voxels).result()
    return path


def ome_zarr_04(path, voxels, chunks=(4, 8, 8)):
    """Five axes, two levels, as the installed base has them."""
    zarr2(path / "0", voxels, (1, 1, *chunks))
    zarr2(path / "1", voxels[..., ::2, ::2], (1, 1, *chunks))
    levels = [
        {
            "path": str(n),
            "coordinateTransformations": [
                {"type": "scale", "scale": [1, 1, 1000, 250.0 * s, 250.0 * s]}
            ],
        }
        for n, s in enumerate((1, 2))
    ]
    axes = [{"name": "t", "type": "time"}, {"name": "c", "type": "channel"}]
    axes += [{"name": n, "type": "space", "unit": "nanometer"} for n in "zyx"]
    image = {
        "version": "0.4",
        "axes": axes,
        "datasets": levels,
        "coordinateTransformations": [{"type": "scale", "scale": [1, 1, 2, 1, 1]}],
    }
    (path / ".zattrs").write_text(json.dumps({"multiscales": [image]}))
    (path / ".zgroup").write_text('{"zarr_format": 2}')
    return path


def n5(path, voxels, block=(8, 7, 4), **attributes):
    import tensorstore as ts

    store = ts.open(
        {
            "driver": "n5",
            "kvstore": f"file://{path}/",
            "metadata": {
                "dimensions": list(voxels.shape[::-1]),
                "blockSize": list(block),
                "dataType": voxels.dtype.name,
                "compression": {"type": "gzip"},
            },
        },
        create=True,
    ).result()
    store.write(voxels.T).result()
    described = json.loads((path / "attributes.json").read_text())
    (path / "attributes.json").write_text(json.dumps(described | attributes))
    return path
