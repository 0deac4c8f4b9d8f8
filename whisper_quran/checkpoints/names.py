"""The names by which models and formats are given. Nothing here imports torch, so a wrong name is answered at once."""

# `whisper.available_models()`, which takes seconds to import.
WHISPER_NAMES = (
    "tiny.en tiny base.en base small.en small medium.en medium large-v1 large-v2 large-v3 large large-v3-turbo turbo"
).split()
# Every checkpoint format: the name that `--to` takes, and its module here, which has three functions:
#   recognises(path) -> bool, read(path) -> Contents, and write(path, dims, tensors, dtype, language);
# and FILES, the names of all that it may write into a folder: empty if it writes one file.
FORMATS = {"openai": "torch_zip", "hf": "huggingface"}
READABLE = "a Whisper .pt, a PyTorch Lightning .ckpt, a Hugging Face folder, model.safetensors or pytorch_model.bin"
