"""Get recitations and their text: ``python -m whisper_quran.download`` (:mod:`.command`).

:mod:`.http` talks to servers, :mod:`.tanzil` reads the text, :mod:`.reciters` knows the names, :mod:`.inventory` checks
what is there.
"""
