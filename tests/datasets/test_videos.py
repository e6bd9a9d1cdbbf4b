"""Videos as sources of images: the frames that have names, and the pixels that a name stands for."""

import builtins
import json
import random
import struct

import numpy as np
import pytest
from helpers.processes import run_script
from PIL import Image

from datasets.images import ImageDataset
from datasets.layouts import find_images, list_images, list_source
from model import InputError, video_files
from model.image_files import load_image
from model.images import rgb_pixels
from model.video_files import VideoReader, frame_of, frame_time, list_frames

av = pytest.importorskip("av")

SIZE = (64, 48)
RATE = 25
CODECS = [
    ("plain.mp4", "mpeg4", {}),
    ("reordered.mp4", "mpeg4", {"bf": "2"}),
    ("reordered.avi", "mpeg4", {"bf": "2"}),
    ("long_group.mov", "libx264", {}),
    ("open_group.mkv", "libx264", {"bf": "3", "x264-params": "open-gop=1:keyint=10"}),
    ("vp9.webm", "libvpx-vp9", {"deadline": "realtime"}),
]


def picture(i):
    """The picture of a moment: a grey that tells which, and a bright corner, [H, W, 3] uint8."""
    pixels = np.full((SIZE[1], SIZE[0], 3), 4 * (i % 60), np.uint8)
    pixels[:16, :16] = 255, 0, 0
    return pixels


def write_video(path, *, codec="mpeg4", options=None, times=range(60)):
    """A video of pictures, 25 a second; times: the moments that it has a frame of."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=RATE, options=options or {})
        (stream.width, stream.height), stream.pix_fmt = SIZE, "yuv420p"
        for i in times:
            frame = av.VideoFrame.from_ndarray(picture(i), format="rgb24")
            frame.pts = i
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def turned(path):
    """The video as a phone writes it that is held upright: to be turned clockwise, as the matrix of its track says."""
    content = bytearray(path.read_bytes())
    start = content.index(b"tkhd") + 44
    content[start : start + 36] = struct.pack(">9i", 0, 1 << 16, 0, -(1 << 16), 0, 0, SIZE[1] << 16, 0, 1 << 30)
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(("name", "codec", "options"), CODECS)
def test_a_name_stands_for_the_same_pixels_in_any_order(tmp_path, name, codec, options):
    path = write_video(tmp_path / name, codec=codec, options=options)
    with av.open(str(path)) as container:
        truth = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    names = list_frames(path, 1000)
    assert len(names) == len(truth) == 60
    order = list(range(60)) + random.Random(0).choices(range(60), k=60)
    for i in order:
        assert np.array_equal(np.asarray(load_image(names[i])), truth[i]), (i, names[i])


def test_the_first_frame_of_each_step_is_taken(tmp_path):
    """A video with a hole, by a loop over its frames."""
    times = [*range(0, 30), *range(60, 100)]  # at 25 a second
    path = write_video(tmp_path / "a.mp4", times=times)
    for fps in (0.1, 0.7, 1, 2, 3, 12.5, 25, 60, 1e9):
        expected = []
        for step in range(500):
            expected += [4 * i for i in times if 4 * i >= int(100 * step / min(fps, 100))][:1]
        found = list_frames(path, fps)
        assert [round(100 * frame_time(name)) for name in found] == sorted(set(expected)), fps
    assert list_frames(path, 1) == [f"{path}#t={time}" for time in ("0.00", "1.00", "2.40", "3.00")]


def test_frames_in_order_are_decoded_once_and_far_ones_are_searched(tmp_path, monkeypatch):
    path = write_video(tmp_path / "a.mp4", times=range(3000))  # two minutes, a key frame every 12 pictures
    count, decode = [0], VideoReader._next

    def counted(reader):
        count[0] += 1
        return decode(reader)

    monkeypatch.setattr(VideoReader, "_next", counted)
    names, close = list_frames(path, 1), list_frames(path, 5)
    assert len(names) == 120 and len(close) == 600
    for frames, most in ((names, 3000), (close, 3000 + 40), (names[::20], 6 * 40), (names[::-1], 120 * 40)):
        count[0] = 0
        assert [np.asarray(load_image(name))[40, 40, 0] // 4 for name in frames] == [
            pytest.approx(round(25 * frame_time(name)) % 60, abs=1) for name in frames
        ]
        assert count[0] <= most


def test_a_phones_video_is_upright(tmp_path):
    path = write_video(tmp_path / "a.mp4")
    upright = np.rot90(np.asarray(load_image(f"{path}#t=1.00")), -1)
    video_files._latest.owner = None  # of the file as it was
    assert upright.shape == (*SIZE, 3) and upright[4, 44, 0] > 200 > upright[4, 4, 0] > 80
    frame = f"{turned(path)}#t=1.0"
    assert np.array_equal(load_image(frame), load_image(frame, exif_orientation=True))
    assert np.array_equal(load_image(frame), upright) and np.array_equal(rgb_pixels(frame), upright)


def test_frames_are_found_beside_images(tmp_path):
    path = write_video(tmp_path / "a.MP4")
    folder = tmp_path / "photos"
    folder.mkdir()
    Image.fromarray(picture(0)).save(folder / "b.mp4#t=1.0.jpg")
    frames = [f"{path}#t={i}.00" for i in range(3)]
    assert list_source(path, fps=1) == frames and list_source(folder, fps=1) == list_images(folder)
    assert find_images([str(path), str(folder), frames[2]]) == [*frames, str(folder / "b.mp4#t=1.0.jpg"), frames[2]]
    assert len(find_images([str(path)], fps=5)) == 12
    assert frame_of(folder / "b.mp4#t=1.0.jpg") is None and frame_time("a/b.mp4") is None
    assert np.array_equal(load_image(folder / "b.mp4#t=1.0.jpg"), load_image(find_images([str(folder)])[0]))
    with pytest.raises(InputError, match="no.mp4#t=1.00: there is no such file"):
        find_images([str(tmp_path / "no.mp4#t=1.00")])


def test_videos_in_a_folder_are_ignored_with_a_warning(tmp_path, caplog):
    write_video(tmp_path / "a.mp4")
    Image.fromarray(picture(0)).save(tmp_path / "b.jpg")
    assert list_images(tmp_path) == [str(tmp_path / "b.jpg")]
    assert "1 files in" in caplog.text and ".mp4" in caplog.text


def sound(path):
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 4096), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())


def cut(path):
    write_video(path)
    path.write_bytes(path.read_bytes()[:-2000])


def playlist(path):
    write_video(path.with_name("other.mp4"))
    path.write_text("ffconcat version 1.0\nfile other.mp4\n")


@pytest.mark.parametrize(
    ("write", "words"),
    [
        (sound, "no video"),
        (cut, "damaged or truncated"),
        (lambda path: path.touch(), "damaged or truncated"),
        (playlist, "damaged or truncated"),
        (lambda path: path.mkdir(), "a folder"),
        (lambda path: None, "no such file"),
    ],
)
def test_what_is_no_video_is_refused(tmp_path, write, words):
    path = tmp_path / "a.mp4"
    write(path)
    with pytest.raises(InputError, match=f"Cannot read the video {path}: .*{words}"):
        list_frames(path, 1)
    with pytest.raises(InputError, match=f"Cannot read the frame {path}#t=1.00: .*{words}"):
        load_image(f"{path}#t=1.0")


@pytest.mark.parametrize("fps", [0, -1, float("nan"), float("inf")])
def test_impossible_rates_are_refused(tmp_path, fps):
    with pytest.raises(InputError, match="above 0"):
        list_frames(tmp_path / "a.mp4", fps)


def test_a_time_beyond_the_end_is_refused_and_the_next_frame_is_read(tmp_path):
    path = write_video(tmp_path / "a.mp4")
    dataset = ImageDataset([f"{path}#t=9.00", f"{path}#t=2.00"], (48, 64))
    error = dataset[0]
    assert isinstance(error, InputError) and str(error).endswith("a.mp4#t=9.00: the video ends at 2.36 seconds.")
    assert np.array_equal(np.round(255 * dataset[1].pixels.numpy()).transpose(1, 2, 0), load_image(f"{path}#t=2.00"))


def test_frames_of_a_damaged_part_are_named_and_later_ones_are_read(tmp_path):
    path = write_video(tmp_path / "a.avi", codec="mjpeg", options={"strict": "unofficial"})
    names = list_frames(path, 1000)
    before = [np.asarray(load_image(name)) for name in names]
    content = bytearray(path.read_bytes())
    _, *starts = (i for i in range(len(content)) if content[i : i + 4] == b"00dc")  # the first one is in the header
    content[starts[20] + 8 : starts[21]] = bytes(starts[21] - starts[20] - 8)
    path.write_bytes(content)
    video_files._latest.owner = None
    problems = []
    for i, name in enumerate(names):
        try:
            assert np.array_equal(load_image(name), before[i]), i
        except InputError as error:
            problems.append(i)
            assert str(error).startswith(f"Cannot read the frame {name}: ")
    assert problems == list(range(20, 34))  # and those half a second later, which are decoded from before


def test_without_pyav_the_message_says_what_to_install(tmp_path, monkeypatch):
    path, imported = write_video(tmp_path / "a.mp4"), builtins.__import__

    def without_av(name, *arguments):
        if name == "av":
            raise ImportError(name)
        return imported(name, *arguments)

    monkeypatch.setattr(builtins, "__import__", without_av)
    with pytest.raises(InputError, match="a.mp4: .*PyAV.*pip install -r requirements-video.txt"):
        list_frames(path, 1)


@pytest.mark.slow
def test_a_video_is_indexed_and_its_frames_are_found(checkpoints, tmp_path):
    path = write_video(tmp_path / "drive.mp4")
    rows = [f"drive.mp4#t={i / 5:.2f},{500_000 + i},4000000\n" for i in range(12)]
    (tmp_path / "track.csv").write_text("image,easting,northing\n" + "".join(rows))
    size = ["--resize", 56, 56]
    flags = [f"--model={checkpoints['float']}", *size, "--device=cpu", "--num_workers=2", "--infer_batch_size=2"]
    built = run_script(
        "build_index.py", path, "--index=index", "--fps=5", *flags, "--positions_csv=track.csv", cwd=tmp_path
    )
    assert built.status == 0 and "12 images in" in built.stdout, built.stderr
    found = run_script(
        "search.py", f"{path}#t=1.20", path, "--fps=1", "--index=index", "--json", "--save_pictures=pictures",
        "--device=cpu", cwd=tmp_path,
    )  # fmt: skip
    assert found.status == 0, found.stderr
    queries = json.loads(found.stdout)["queries"]
    assert [query["image"] for query in queries] == [f"{path}#t={time}" for time in ("1.20", "0.00", "1.00", "2.00")]
    for query in queries:
        match = query["matches"][0]
        assert match["path"] == query["image"] and match["distance"] < 1e-3
        assert match["easting"] == 500_000 + round(5 * frame_time(match["path"]))
    with Image.open(tmp_path / queries[0]["picture"]) as image:
        colours = {color for _, color in image.getcolors(1 << 24)}
    assert any(red > 200 > 100 > green for red, green, _ in colours)  # the frame is drawn
    refused = run_script("build_index.py", path, "--index=other", "--fps=0", *flags, cwd=tmp_path)
    assert refused.status == 2 and "--fps: '0' is not a number above 0" in refused.stderr
