"""The Hugging Face Hub: names, downloads, ranged reads, lists, commits and cards.

The room knows no adapters: it hands out files. `huggingface_hub` is imported when a name of the Hub is used.
"""
