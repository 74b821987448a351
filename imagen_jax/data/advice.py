"""Advice for the commonest reasons why examples are left out."""

_ADVICE = (
    ("image is larger than", "--fit crop reduces and crops them"),
    ("image is smaller than", "a smaller --image-size takes them"),
    ("no image file", "--image-folder says what their paths are relative to"),
    ("image is a URL", "download them first, as img2dataset does"),
    ("image is HEIC", "pip install pillow-heif"),
    ("image is JPEG XL", "pip install pillow-jxl-plugin"),
    ("no image", "--image-key names where images are"),
    ("caption is not in", "--encoding names another encoding, such as cp1252 or utf-16"),
    ("caption with NUL", "--encoding utf-16-le reads UTF-16 without a byte order mark"),
    ("further image of its name", "--image-key names the suffix that is meant"),
    ("caption of more than", "--long-captions truncate cuts them"),
    ("caption of several lines", "each is taken as one caption"),
    ("no caption", "--caption-key names where captions are"),
    ("row of more cells", "captions with commas must be quoted, or the table written as TSV"),
    ("neither image nor caption", "--image-key and --caption-key name the suffixes"),
)


def advice_on(reason: str) -> str:
    """Return what mends a reason for leaving examples out, or explains a change; "" for others."""
    return next((advice for start, advice in _ADVICE if reason.startswith(start)), "")
