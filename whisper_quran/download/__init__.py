"""Get recitations and their text: ``python -m whisper_quran.download`` (:mod:`.command`).

:mod:`.http` is the HTTP client, :mod:`.tanzil` reads the text, :mod:`.reciters` has the names, and :mod:`.inventory`
checks a folder.
"""
