"""Recognition: from a recording to its ayat, words and mistakes. Here: the checks of its paths, without torch, which
takes seconds to import."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from ..checkpoints.names import WHISPER_NAMES, check_model_source
from ..config import RecognitionConfig
from ..data.audio import is_audio
from ..runtime.console import printable
from ..runtime.errors import UserError
from ..runtime.files import check_folder, check_outputs

_PAGE = b'content="whisper_quran"'  # is in every page that we write, and in no other
_SEGMENTS = b'{"whisper_quran": '


def check_inputs(config: RecognitionConfig) -> list[Path]:
    """Return the recordings: the files, and the audio files in the folders, of ``config``; none of standard input.

    Raises:
        UserError: one of them, the text or the model is not there.
    """
    files: list[Path] = []
    live = config.follow and config.files == ("-",)  # standard input
    for path in () if live else map(Path, config.files):
        if not path.exists():
            raise UserError(f"no file or folder {printable(str(path))}: give recordings, or folders of them")
        files += [path] if path.is_file() else filter(is_audio, sorted(path.rglob("*")))
    if not files and not live:
        raise UserError(f"no recordings in {', '.join(config.files)}: give audio files, or folders of them")
    if config.text and not config.text.is_file():
        raise UserError(f"no text {config.text}: give a CSV sorah,ayah,text, or no --text for the package's own")
    check_model_source(config.model)
    return list(dict.fromkeys(files))


def check_results(config: RecognitionConfig, files: Sequence[Path]) -> dict[str, Path]:
    """Check that all results can be written, and return the path of the subtitles of each of ``files``.

    It is NAME.srt beside the recording or in ``config.srt_dir``; NAME.mp3.srt, or NAME.mp3.2.srt, if recordings share
    that name.

    Raises:
        UserError: a result would replace something else, or a folder cannot be written.
    """
    model = [] if config.model in WHISPER_NAMES else [config.model]
    text = [config.text] if config.text else []
    for output, mark in ((config.html, _PAGE), (config.segments, _SEGMENTS)):
        if output:
            check_outputs([output], [*files, *text, *model], mark=mark)
    if not config.srt and not config.srt_dir:
        return {}
    plain = [(config.srt_dir or file.parent) / f"{file.stem}.srt" for file in files]
    for folder in dict.fromkeys(path.parent for path in plain):
        try:
            check_folder(folder)
        except UserError as error:
            raise UserError(f"{error}; --srt-dir FOLDER puts the subtitles there") from None
    times, named, paths = Counter(plain), Counter[Path](), {}
    for file, path in zip(files, plain, strict=True):
        if times[path] > 1:
            path = path.with_name(f"{file.name}.srt")
            named[path] += 1
            if named[path] > 1:
                path = path.with_name(f"{file.name}.{named[path]}.srt")
        paths[str(file)] = path
    return paths
