"""Image sets with digests: found, checked, decoded, never downloaded."""

from wellposed.data.folders import search_folders
from wellposed.data.loading import describe, is_available, load_images
from wellposed.data.records import ImageSet, Normalisation, Split
from wellposed.data.registry import IMAGE_SETS
from wellposed.data.validation import split_validation

__all__ = [
    "IMAGE_SETS",
    "ImageSet",
    "Normalisation",
    "Split",
    "describe",
    "is_available",
    "load_images",
    "search_folders",
    "split_validation",
]
