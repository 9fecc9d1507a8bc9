#!/usr/bin/env python3
"""Makes clip_merges.zz from OpenAI CLIP's bpe_simple_vocab_16e6.txt.gz (as open_clip_torch ships it).

usage: make_merges.py PATH/bpe_simple_vocab_16e6.txt.gz

Takes the 48,894 merges that CLIP uses (of 262,144 in the file), a line "left right" each, zlib-compressed.
"""
import gzip, pathlib, sys, zlib

lines = gzip.open(sys.argv[1]).read().decode("utf-8").split("\n")
merges = lines[1 : 49152 - 256 - 2 + 1]
assert len(merges) == 48894 and all(len(m.split(" ")) == 2 for m in merges)
data = zlib.compress(("\n".join(merges) + "\n").encode("utf-8"), 9)
pathlib.Path(__file__).with_name("clip_merges.zz").write_bytes(data)
