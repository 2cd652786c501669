"""What a file is by its name alone: a video, a file of another known kind, the system's, or unknown.

In: file names. Out: kinds. What no name can tell is left to FFmpeg, see `video_files`.
"""

import os

# Containers and bare streams that hold video and hardly anything else.
_VIDEO = """
  .3g2 .3gp .3gpp .amv .asf .av1 .avi .divx .dv .f4v .flv .h264 .h265 .264 .265 .hevc .ivf
  .m1v .m2p .m2t .m2ts .m2v .m4v .mj2 .mjpeg .mjpg .mk3d .mkv .mov .mp4 .mp4v .mpe .mpeg .mpg
  .mpg4 .mpv .mts .mxf .nut .obu .ogm .ogv .ogx .qt .rm .rmvb .tod .trp .ts .vc1 .vob .vro .webm
  .wmv .wtv .xvid .y4m
"""
# Endings that both videos and other files have: a moving picture or a still one, a Video CD's stream
# or any data, a camera's recording or music. They count as a video's ending, and the content decides.
_EITHER = ".apng .dat .gif .mod .ogg .webp"
_TEXT = "readme license licence copying notice authors changelog citation makefile todo version"
_OTHER = {
  "text": ".txt .md .rst .log .html .htm .tex .nfo .readme .url .webloc",
  "table": ".csv .tsv .xls .xlsx .ods .parquet .feather .arrow .db .sqlite",
  "data": ".json .jsonl .yaml .yml .xml .toml .ini .cfg .conf .pkl .pickle .npy .npz .mat .h5 .hdf5"
  " .tfrecord .proto .pb .bvh .c3d .skeleton .flo .info",
  "picture": ".jpg .jpeg .jpe .jfif .png .bmp .tif .tiff .heic .heif .avif .svg .ico .psd .ppm .pgm"
  " .pbm .exr .hdr .raw .dng .cr2 .nef .tga .jp2 .eps .thm",
  "sound": ".wav .mp3 .flac .aac .m4a .oga .opus .wma .aiff .aif .amr .mka .mid .ac3",
  "subtitles": ".srt .vtt .ass .ssa .sub .idx .sbv .ttml .smi",
  "playlist": ".m3u .m3u8 .pls .mpd .cue .ffconcat .asx .xspf",
  "document": ".pdf .doc .docx .odt .ppt .pptx .rtf .bib",
  "archive": ".zip .rar .tar .gz .tgz .bz2 .xz .7z .zst .r00 .par2 .iso",
  "checksum": ".md5 .sha1 .sha256 .sha512 .sfv",
  "program": ".py .pyc .ipynb .sh .bat .ps1 .js .c .cc .cpp .h .java .m .r .jar .exe .dll .so .lnk",
  "checkpoint": ".pt .pth .ckpt .safetensors .onnx .tflite",
  "index of a video": ".bup .ifo .cpi .bdm .mpl .xmp .lrv .thumb",
  "unfinished download": ".part .crdownload .download .tmp .temp .aria2 .ytdl .opdownload",
}
_KINDS = {
  **dict.fromkeys(_VIDEO.split(), "video"),
  **dict.fromkeys(_EITHER.split(), ""),
  **{suffix: kind for kind, suffixes in _OTHER.items() for suffix in suffixes.split()},
}
_VIDEO_ENDINGS = frozenset(_VIDEO.split() + _EITHER.split())
_TEXT_NAMES = frozenset(_TEXT.split())
# What systems and network disks leave in folders, in lower case. Names that begin with a dot are
# hidden files everywhere.
_SYSTEM = frozenset(
  {
    "thumbs.db", "ehthumbs.db", "ehthumbs_vista.db", "desktop.ini", "icon\r", "@eadir", "#recycle",
    "@recycle", "@recently-snapshot", "__macosx", "__pycache__", "$recycle.bin", "recycler",
    "system volume information", "lost+found", "network trash folder", "temporary items",
  }
)  # fmt: skip


# Lists have hundreds of thousands of names, for which `pathlib` would take minutes.


def is_video(name: os.PathLike | str) -> bool:
  """Whether a file name has a video's suffix, ignoring case; one in doubt, such as .gif, has."""
  return _suffix(os.fspath(name)).lower() in _VIDEO_ENDINGS


def kind(name: os.PathLike | str) -> str:
  """What a file is by its name: "video", another kind in a word, or "" where its content decides."""
  text = os.fspath(name)
  if os.path.basename(text).lower() in _TEXT_NAMES:
    return "text"
  return _KINDS.get(_suffix(text).lower(), "")


def stem(name: str) -> str:
  """A file name without its video suffix; any other ending is part of the name."""
  last = os.path.basename(name)
  return last.removesuffix(_suffix(last)) if is_video(last) else last


def is_system(name: str) -> bool:
  """Whether a file or folder is hidden or the system's, and so no data: `._a.avi`, `Thumbs.db`."""
  return name.startswith(".") or name.lower() in _SYSTEM


def _suffix(name: str) -> str:
  return os.path.splitext(name)[1]
