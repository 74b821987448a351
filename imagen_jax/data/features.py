"""From compressed records to the arrays that a stage trains on.

A record holds an encoded image and the token states of its caption. Records stay compressed until
after shuffling; `ImagenFeatureConverter` then decodes them into

  image      float32 [h, w, 3]  in [-1, 1]
  low_res    float32 [s, s, 3]  in [-1, 1], only for super-resolution stages
  text_emb   bfloat16 [l, d]    token states, zero on padding
  text_mask  bool [l]           True at real tokens
  id         string             name of the record in its source

Nothing is stretched, recoloured or truncated: a record of another size is an error that names it.
There is no augmentation either: a flipped image would contradict a caption that says "left of".
Only where a stage asks for it, it gets a random square of the image (Imagen's 1024-pixel stage
trains on squares of 256, section 2.4); which one is a function of the seed and of the example's
position.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import seqio
import tensorflow as tf

from imagen_jax.data.manifest import Manifest
from imagen_jax.errors import UserError

# The accelerators belong to JAX. TensorFlow only feeds it, and must not reserve their memory.
for _kind in ("GPU", "TPU"):
    tf.config.set_visible_devices([], _kind)

RECORD_FEATURES = {
    "id": tf.io.FixedLenFeature([], tf.string),
    "image": tf.io.FixedLenFeature([], tf.string),
    "emb": tf.io.FixedLenFeature([], tf.string),
    "emb_scale": tf.io.FixedLenFeature([], tf.string, default_value=""),
    "emb_len": tf.io.FixedLenSequenceFeature([], tf.int64, allow_missing=True),
}
"""The features that training reads; a record may hold more (its caption)."""

_TASK_SPECS = {
    "id": (tf.string, 0),
    "image": (tf.string, 0),
    "emb": (tf.string, 0),
    "emb_scale": (tf.string, 0),
    "emb_len": (tf.int64, 1),
    "position": (tf.int64, 0),
}
TASK_FEATURES = {
    name: seqio.Feature(seqio.PassThroughVocabulary(0), add_eos=False, dtype=dtype, rank=rank)
    for name, (dtype, rank) in _TASK_SPECS.items()
}
"""seqio output features of a task over embedding shards: the record, still compressed, and its
position in the order, which seeds what is random about it."""
TASK_FEATURE_LENGTHS = {
    "id": None, "image": None, "emb": None, "emb_scale": None, "emb_len": 2**31 - 1,
    "position": None,
}  # fmt: skip
"""Task feature lengths for `seqio.get_dataset`, the most of each; an image may have any number of
captions. Sizes are arguments of the feature converter."""


def parse_example(serialized: tf.Tensor) -> dict[str, tf.Tensor]:
    """Parses a serialized record in a TensorFlow graph; image and token states stay as stored.

    Raises (when iterated):
      tf.errors.InvalidArgumentError: a feature is missing.
    """
    return tf.io.parse_single_example(serialized, RECORD_FEATURES)


def area_downsample(image: tf.Tensor, factor: int) -> tf.Tensor:
    """Mean over `factor` x `factor` blocks: exact area (box) averaging.

    Args:
      image: [h, w, c] float; both sides are multiples of `factor`.
      factor: whole number, 1 returns the image unchanged.

    Returns:
      [h / factor, w / factor, c] in the units of `image`.
    """
    if factor == 1:
        return image
    return tf.nn.avg_pool2d(image[tf.newaxis], factor, factor, "VALID")[0]


@dataclasses.dataclass(frozen=True)
class View:
    """The form in which a stage sees examples.

    Attributes:
      image_size: side of the images in pixels. It divides the recorded size; smaller images are
        exact area averages, so that all stages of a cascade read the same shards.
      low_res_size: side of the area-averaged "low_res"; divides image_size. None leaves it out.
      text_length: length that token states are zero-padded to; longer captions are an error.
      crop: side of a random square of "image", in pixels, or None for all of it. "low_res" is the
        same square: it lies on whole pixels of "low_res", so that averaging and cropping commute.
    """

    image_size: int
    low_res_size: int | None
    text_length: int
    crop: int | None = None

    def __post_init__(self) -> None:
        if self.image_size < 1 or self.text_length < 1:
            raise UserError(
                f"image_size and text_length must be at least 1, got {self.image_size} and "
                f"{self.text_length}"
            )
        if self.low_res_size is not None and (
            self.low_res_size < 1 or self.image_size % self.low_res_size
        ):
            raise UserError(
                f"low_res_size {self.low_res_size} does not divide image_size {self.image_size}; "
                f"choose one of {_divisors(self.image_size)}"
            )
        if self.crop is not None and not (
            0 < self.crop <= self.image_size and self.crop % self.factor == 0
        ):
            raise UserError(
                f"crop {self.crop} must be a multiple of {self.factor} (image_size / low_res_size) "
                f"and at most image_size {self.image_size}"
            )

    @property
    def factor(self) -> int:
        """Pixels of "image" for one of "low_res", along a side."""
        return 1 if self.low_res_size is None else self.image_size // self.low_res_size

    @property
    def side(self) -> int:
        """Side of "image" in pixels, as it is given out."""
        return self.image_size if self.crop is None else self.crop


class ImagenFeatureConverter(seqio.FeatureConverter):
    """Decodes records into {"image", "text_emb", "text_mask", "low_res"?} of one fixed size.

    Args:
      view: the form that they get.
      manifest: manifest of the records: image_size, the encoder's width, and the storage of states.
      seed: seed of the random squares, where the view crops.

    Raises:
      UserError: the view's image size does not divide the recorded one. While iterating, an
        `InvalidArgumentError` that names the record: wrong image size or channels, an embedding
        that is empty, not finite, longer than the view's text_length or of another width.
    """

    TASK_FEATURES: Mapping[str, seqio.FeatureConverter.FeatureSpec] = {
        name: seqio.FeatureConverter.FeatureSpec(dtype=dtype, rank=rank)
        for name, (dtype, rank) in _TASK_SPECS.items()
    }
    MODEL_FEATURES: Mapping[str, seqio.FeatureConverter.FeatureSpec] = {
        "image": seqio.FeatureConverter.FeatureSpec(dtype=tf.float32, rank=3),
        "text_emb": seqio.FeatureConverter.FeatureSpec(dtype=tf.bfloat16, rank=2),
        "text_mask": seqio.FeatureConverter.FeatureSpec(dtype=tf.bool, rank=1),
        "id": seqio.FeatureConverter.FeatureSpec(dtype=tf.string, rank=0),
    }
    PACKING_FEATURE_DTYPES: Mapping[str, tf.dtypes.DType] = {}

    def __init__(self, view: View, manifest: Manifest, seed: int = 0):
        record_size = manifest["image_size"]
        if record_size % view.image_size:
            raise UserError(
                f"image_size {view.image_size} does not divide the recorded image size "
                f"{record_size}; choose one of {_divisors(record_size)}"
            )
        if view.low_res_size is not None:
            self.MODEL_FEATURES = {
                **self.MODEL_FEATURES,
                "low_res": seqio.FeatureConverter.FeatureSpec(dtype=tf.float32, rank=3),
            }
        self._view = view
        self._record_size = record_size
        self._text_width = manifest["encoder"]["width"]
        self._states = {"bfloat16": tf.bfloat16, "int8": tf.int8}[manifest["states"]]
        self._seed = seed
        super().__init__(pack=False)

    def check(self, record: tf.Tensor) -> None:
        """Convert a serialized record, for the errors that this raises."""
        self.convert(parse_example(record) | {"position": tf.zeros([], tf.int64)})

    def get_model_feature_lengths(
        self, task_feature_lengths: Mapping[str, int | None]
    ) -> Mapping[str, int | None]:
        """First dimension of every model feature, checked exactly by seqio."""
        lengths: dict[str, int | None] = {
            "id": None,
            "image": self._view.side,
            "text_emb": self._view.text_length,
            "text_mask": self._view.text_length,
        }
        if self._view.low_res_size is not None:
            lengths["low_res"] = self._view.side // self._view.factor
        return lengths

    def _convert_features(
        self, ds: tf.data.Dataset, task_feature_lengths: Mapping[str, int | None]
    ) -> tf.data.Dataset:
        return ds.map(self.convert, num_parallel_calls=tf.data.AUTOTUNE)

    def convert(self, record: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """One record."""
        features = {**self._image_features(record), **self._text_features(record)}
        features["id"] = record["id"]
        return {name: features[name] for name in self.MODEL_FEATURES}

    def _image_features(self, record: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        size = [self._record_size, self._record_size, 3]
        # What it says of its size comes first: decoding takes memory for as much.
        said = _size_said(record["image"], record["id"])
        decodable = tf.debugging.Assert(
            tf.reduce_all(tf.equal(said, size[:2])),
            ["record", record["id"], "has an image of size", said, "expected", size[:2]],
        )
        with tf.control_dependencies([decodable]):
            # channels=0 keeps the file's own channels, so that grey or transparent images are seen.
            pixels = tf.io.decode_image(record["image"], channels=0, expand_animations=False)
        suitable = tf.debugging.Assert(
            tf.reduce_all(tf.equal(tf.shape(pixels), size)),
            ["record", record["id"], "has an image of size", tf.shape(pixels), "expected", size],
        )
        # Without the dependency another operation may fail first, and its error names no record.
        with tf.control_dependencies([suitable]):
            pixels = tf.ensure_shape(pixels, size)
        factor = self._record_size // self._view.image_size
        if self._view.crop is not None:
            pixels = self._square(pixels, record["position"], factor)
        # Means of 0..255 are exact for factors that are powers of two; only the map to [-1, 1]
        # rounds.
        pixels = tf.cast(pixels, tf.float32)
        image = area_downsample(pixels, factor)
        features = {"image": _to_unit_range(image)}
        if self._view.low_res_size is not None:
            features["low_res"] = _to_unit_range(area_downsample(image, self._view.factor))
        return features

    def _square(self, pixels: tf.Tensor, position: tf.Tensor, factor: int) -> tf.Tensor:
        """A random square, before averaging: `factor` times the crop's side."""
        places = (self._view.image_size - self._view.side) // self._view.factor + 1
        at = tf.random.stateless_uniform(
            [2], [tf.cast(self._seed, tf.int64), position], 0, places, tf.int32
        )
        start = tf.concat([at * self._view.factor * factor, [0]], 0)
        side = self._view.side * factor
        return tf.ensure_shape(tf.slice(pixels, start, [side, side, 3]), [side, side, 3])

    def _text_features(self, record: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        lengths = record["emb_len"]
        row_bytes = self._text_width * self._states.size
        scale_bytes = tf.float32.size if self._states == tf.int8 else 0
        suitable_length = tf.debugging.Assert(
            (tf.size(lengths) >= 1)
            & tf.reduce_all((lengths >= 1) & (lengths <= self._view.text_length)),
            ["record", record["id"], "has captions of", lengths, "tokens, text_length allows 1 to",
             self._view.text_length],
        )  # fmt: skip
        stored = {"emb": row_bytes, "emb_scale": scale_bytes}
        stored_bytes = [tf.cast(tf.strings.length(record[name]), tf.int64) for name in stored]
        expected_bytes = [tf.reduce_sum(lengths) * row for row in stored.values()]
        suitable_width = tf.debugging.Assert(
            tf.reduce_all(tf.equal(stored_bytes, expected_bytes)),
            ["record", record["id"], "has an embedding of", stored_bytes[0], "bytes, expected",
             expected_bytes[0], "for width", self._text_width, "and scales of", stored_bytes[1],
             "bytes, expected", expected_bytes[1]],
        )  # fmt: skip

        def padded(value: tf.Tensor, dtype: tf.DType, row: int) -> tf.Tensor:
            # fixed_length pads with zeros; it would also truncate, which is ruled out above.
            size = self._view.text_length * row * dtype.size
            flat = tf.io.decode_raw(value, dtype, fixed_length=size)
            return tf.reshape(flat, [self._view.text_length, row])

        with tf.control_dependencies([suitable_length, suitable_width]):
            drawn = self._draw(tf.size(lengths), record["position"])
            before, length = tf.reduce_sum(lengths[:drawn]), lengths[drawn]
            of_drawn = {
                name: tf.strings.substr(record[name], before * row, length * row)
                for name, row in stored.items()
            }
            states = padded(of_drawn["emb"], self._states, self._text_width)
            if self._states == tf.int8:
                scales = padded(of_drawn["emb_scale"], tf.float32, 1)
                states = tf.cast(states, tf.float32) * scales
        finite = tf.debugging.Assert(
            tf.reduce_all(tf.math.is_finite(states)),
            ["record", record["id"], "has token states that are not finite; embed it again"],
        )
        with tf.control_dependencies([finite]):
            states = tf.cast(states, tf.bfloat16)
        return {
            "text_emb": states,
            "text_mask": tf.range(self._view.text_length, dtype=tf.int64) < length,
        }

    def _draw(self, captions: tf.Tensor, position: tf.Tensor) -> tf.Tensor:
        """Number of the caption that an example has at this position of the order."""
        # _square draws by positions, which are not negative.
        seed = [tf.cast(self._seed, tf.int64), -1 - position]
        return tf.random.stateless_uniform([], seed, 0, captions, tf.int32)


def _size_said(image: tf.Tensor, name: tf.Tensor) -> tf.Tensor:
    """(height, width) of a PNG or JPEG by its header."""
    is_png = tf.equal(tf.strings.substr(image, 0, 4), b"\x89PNG")
    is_jpeg = tf.equal(tf.strings.substr(image, 0, 2), b"\xff\xd8")
    known = tf.debugging.Assert(
        is_png | is_jpeg, ["record", name, "has an image that is neither PNG nor JPEG"]
    )

    def of_png() -> tf.Tensor:
        words = tf.io.decode_raw(image, tf.int32, little_endian=False, fixed_length=24)
        return words[5:3:-1]  # height and width of its first chunk

    with tf.control_dependencies([known]):
        return tf.cond(is_png, of_png, lambda: tf.io.extract_jpeg_shape(image)[:2])


def _to_unit_range(pixels: tf.Tensor) -> tf.Tensor:
    """[0, 255] -> [-1, 1]."""
    return pixels / 127.5 - 1.0


def _divisors(size: int) -> list[int]:
    return [n for n in range(1, size + 1) if size % n == 0]
