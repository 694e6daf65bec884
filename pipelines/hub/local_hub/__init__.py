"""A stand-in for the Hugging Face Hub on this machine, for trying and testing only.

    gpt2-recipes hub

The real `huggingface_hub` client speaks to it when HF_ENDPOINT names it. It has public and private
repositories of one user, commits, branches, tags, regular and LFS files and ranges; no Xet, pull
requests or multipart uploads.
"""

from pipelines.hub.local_hub.server import LocalHub, main

__all__ = ["LocalHub", "main"]
