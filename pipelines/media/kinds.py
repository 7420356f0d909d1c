"""Kinds of files by their names."""

from __future__ import annotations

from typing import Literal

Kind = Literal["video", "sound", "picture", "other"]
SUFFIXES: dict[Kind, tuple[str, ...]] = {
    "video": tuple(
        "mp4 m4v mov qt mkv webm avi wmv asf flv f4v mpg mpeg m2v vob ts mts m2ts mxf 3gp 3g2 ogv rm rmvb".split()
    ),
    "sound": tuple("wav mp3 flac ogg oga opus m4a m4b aac ac3 wma aif aiff amr mka".split()),
    "picture": tuple("jpg jpeg png webp gif bmp tif tiff avif heic svg".split()),
}
"""Suffixes of each kind, in lower case."""
_KIND_OF = {suffix: kind for kind, suffixes in SUFFIXES.items() for suffix in suffixes}
VIDEO = rf"\.(?:{'|'.join(SUFFIXES['video'])})$"
"""Regular expression for the end of a video's name, in lower case."""


def kind_of(name: str) -> Kind:
    """Kind of a file by its suffix, of whatever case."""
    _, dot, suffix = name.rpartition(".")
    return _KIND_OF.get(suffix.casefold(), "other") if dot else "other"
