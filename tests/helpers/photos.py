"""Photos of a phone, with GPS tags and an orientation, and empty files in place of photos."""

import numpy as np
from PIL import Image
from PIL.TiffImagePlugin import IFDRational

from datasets.file_names import utm_position
from model.geodesy import degrees_of_local

GPS_DIRECTORY, ORIENTATION = 0x8825, 0x0112
LAT_LETTER, LAT, LON_LETTER, LON = 1, 2, 3, 4
TURNED = {3: Image.Transpose.ROTATE_180, 6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270}


def dms(degrees):
    """Degrees, minutes and hundredths of a second, as EXIF has them."""
    hundredths = round(abs(degrees) * 360_000)
    parts = (hundredths // 360_000, 1), (hundredths // 6000 % 60, 1), (hundredths % 6000, 100)
    return tuple(IFDRational(*part) for part in parts)


def gps_tags(latitude, longitude):
    letters = {LAT_LETTER: "N" if latitude >= 0 else "S", LON_LETTER: "E" if longitude >= 0 else "W"}
    return {**letters, LAT: dms(latitude), LON: dms(longitude)}


def save_photo(path, tags=None, orientation=None, image=None):
    """A photo of a phone: stored turned, if there is an orientation, with these GPS tags. Its path as text."""
    image, exif = image or Image.new("RGB", (60, 40), (90, 120, 60)), Image.Exif()
    if orientation:
        exif[ORIENTATION] = orientation
        image = image.transpose(TURNED[orientation])
    if tags is not None:
        exif[GPS_DIRECTORY] = tags
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, exif=exif)
    return str(path)


def copy_as_phone_photos(folder, target, origin):
    """Copies JPEG files that have metres in their names, with the same pixels: to names without, in the same order, and
    with GPS tags for these metres east of 500000 and north of 6950000 around an origin. {new name: old name}.
    """
    names = {}
    target.mkdir(parents=True)
    for i, path in enumerate(sorted(folder.iterdir())):
        metres = np.array(utm_position(path)) - (500_000, 6_950_000)
        exif = Image.Exif()
        exif[GPS_DIRECTORY] = gps_tags(*degrees_of_local(metres, origin).tolist())
        segment = exif.tobytes()
        data = path.read_bytes()
        app1 = b"\xff\xe1" + (len(segment) + 2).to_bytes(2, "big") + segment
        (target / f"IMG_{i:03d}.jpg").write_bytes(data[:2] + app1 + data[2:])
        names[f"IMG_{i:03d}.jpg"] = path.name
    return names


def make_split(datasets, database=("@1@2@.jpg",), queries=("@1@2@.jpg",)):
    """The split <datasets>/town/images/test with empty files of these names; its folder."""
    split = datasets / "town" / "images" / "test"
    for folder, names in (("database", database), ("queries", queries)):
        (split / folder).mkdir(parents=True)
        for name in names:
            (split / folder / name).parent.mkdir(parents=True, exist_ok=True)
            (split / folder / name).touch()
    return split
