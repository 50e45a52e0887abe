"""The data that a recipe names: one section a source."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from elastic.recipe.section import Section


class DigitsData(Section):
    """Handwritten digits of scikit-learn: 1,797 grey images of 8x8 pixels, 10 classes."""

    source: Literal["digits"]
    seed: int = Field(0, description="Seed of the split into train, validation and test.")
    validation: float = Field(0.2, gt=0, lt=0.5, description="Share of the images held out for choosing.")
    test: float = Field(0.2, gt=0, lt=0.5, description="Share of the images that only the last evaluation sees.")


class StdlibData(Section):
    """Python's own standard library: the sources of the interpreter that runs this, for causal language models."""

    source: Literal["stdlib"]
    max_bytes: int = Field(4_000_000, ge=10_000, description="How much text to read, in bytes.")
    vocab_size: int = Field(2048, ge=300, description="Size of the byte-pair vocabulary trained on the train split.")
    sequence_length: int = Field(128, ge=8, description="Tokens of one training example.")


class DocstringData(Section):
    """Functions of Python's standard library and their docstrings, for models that embed.

    Every function comes with its own docstring's first sentence (score 1) and with another one of its file (score 0).
    """

    source: Literal["docstrings"]
    labelled: bool = Field(True, description="Train on the pairs with their scores, or else on single texts.")
    max_train: int | None = Field(None, ge=1, description="Use only so many training pairs, or texts.")
    max_length: int | None = Field(None, ge=8, description="Longest input in tokens; by default the embedder's own.")
    seed: int = Field(0, description="Seed of which other docstring a function is paired with.")


class ImageData(Section):
    """Images with labels, from parquet files or the Hub (column types as in `datasets`)."""

    source: Literal["images"]
    path: str = Field(description="Folder with {train,validation,test}.parquet, or the name of a Hub dataset.")
    image_column: str = "image"
    label_column: str = "label"
    mean: tuple[float, ...] = Field((0.5,), description="Subtracted from pixels in 0-1, one number or one a channel.")
    std: tuple[float, ...] = Field((0.5,), description="Divides after that.")
    flip: bool = Field(False, description="Mirror training images at random.")
    validation: float = Field(0.1, gt=0, lt=0.5, description="Share of train held out where there is no validation.")
    max_train: int | None = Field(None, ge=1, description="Use only so many training examples.")
    seed: int = 0


class TextData(Section):
    """Plain text files for causal language models."""

    source: Literal["text"]
    paths: tuple[str, ...] = Field(min_length=1, description="Text files, read in this order.")
    tokenizer: str | None = Field(None, description="Tokenizer folder or Hub name; by default one is trained.")
    characters: bool = Field(False, description="One token a character instead of byte pairs.")
    vocab_size: int = Field(2048, ge=300)
    sequence_length: int = Field(128, ge=8)
    validation: float = Field(0.05, gt=0, lt=0.5, description="Share at the end held out for choosing.")
    test: float = Field(0.05, gt=0, lt=0.5, description="Share after that, which only the last evaluation sees.")


class SentencePairData(Section):
    """Pairs of sentences with their similarity, from parquet files or the Hub, for models that embed.

    Trained on is every sentence of the train pairs and of ``unlabelled``, without labels and without the sentences of
    the validation and test pairs; or, with ``labelled``, the train pairs and their scores. Judged by the rank
    correlation of cosine similarity and score.
    """

    source: Literal["sentence-pairs"]
    path: str = Field(description="Folder with {train,validation,test}.parquet, or the name of a Hub dataset.")
    sentence_columns: tuple[str, str] = ("sentence1", "sentence2")
    score_column: str = "score"
    labelled: bool = Field(False, description="Train on the pairs with their scores, not on single sentences.")
    unlabelled: tuple[str, ...] = Field((), description="More sentences: parquet files, or lines of text.")
    unlabelled_columns: tuple[str, ...] = Field(
        (), description="Where sentences are in those parquet files; by default in the columns of the pairs."
    )
    max_train: int | None = Field(None, ge=1, description="Use only so many training sentences.")
    max_length: int | None = Field(None, ge=8, description="Longest input in tokens; by default the embedder's own.")


DATA_SECTIONS: dict[str, type[Section]] = {
    "digits": DigitsData,
    "stdlib": StdlibData,
    "docstrings": DocstringData,
    "images": ImageData,
    "text": TextData,
    "sentence-pairs": SentencePairData,
}
DataSection = Annotated[
    DigitsData | StdlibData | DocstringData | ImageData | TextData | SentencePairData, Field(discriminator="source")
]
