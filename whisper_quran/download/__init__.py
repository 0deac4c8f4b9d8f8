"""Getting the recitations: ``python -m whisper_quran.download`` (:mod:`.command`).

:mod:`.polite` talks to servers, :mod:`.archive` unpacks what strangers packed, :mod:`.tanzil` reads the text,
:mod:`.reciters` knows the names, and :mod:`.inventory` checks what is there.
"""
