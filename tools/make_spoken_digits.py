"""Makes src/limbeck/data/assets/spoken-digits.npz: log-mel spectrograms of spoken digits from eSpeak NG.

    pip install "limbeck[maintainer]"
    python tools/make_spoken_digits.py

Run once by a maintainer; users get the file. The same eSpeak NG version gives the same bytes. What the file holds and
why it may be shipped stands beside it in spoken-digits.md.
"""

from __future__ import annotations

import argparse
import ctypes
from pathlib import Path

import numpy as np

from limbeck.data.spectrograms import log_mel

WORDS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
ACCENTS = ["en", "en-us", "en-gb-scotland", "en-029", "en-gb-x-rp", "en-gb-x-gbclan", "en-gb-x-gbcwmd", "en-us-nyc"]
# Timbres ("variants"). Near relatives (iven and iven2, klatt and klatt2) stay in one split: a timbre of the test split
# is never heard in training.
VARIANTS = {
    "train": """m1 m2 m3 m5 m7 f1 f2 f4 croak adam Alex Alicia Andrea Annie anika antonio aunty belinda boris caleb
        david edward edward2 Gene Gene2 gustave Henrique iven iven2 iven3 klatt klatt2 Lee marcelo Marco
        michel miguel Mike mike2 norbert pablo""",
    "validation": "m4 m8 f3 benjamin grandpa Hugo john linda max paul Reed steph steph2",
    "test": "m6 f5 announcer Andy Denis grandma ian Jacky kaukovalta Mario Michael quincy sandro shelby victor zac",
}
MELS, FRAMES, SECONDS, LEVELS = 32, 32, 0.64, 31


class Speaker:
    """The few calls of eSpeak NG's C interface (speak_lib.h) that are needed to get samples instead of sound."""

    RETRIEVAL_SYNCHRONOUS, RATE, PITCH, RANGE, UTF8 = 2, 1, 3, 4, 1

    def __init__(self) -> None:
        import espeakng_loader

        self.library = ctypes.CDLL(espeakng_loader.get_library_path())
        self.library.espeak_Info.restype = ctypes.c_char_p
        where = str(Path(espeakng_loader.get_data_path()).parent).encode()
        self.rate = self.library.espeak_Initialize(self.RETRIEVAL_SYNCHRONOUS, 0, where, 0)
        if self.rate <= 0:
            raise SystemExit(f"eSpeak NG did not start with the data in {where.decode()}.")
        self.pieces: list[np.ndarray] = []
        kind = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)
        self.callback = kind(self.collect)  # kept: the library holds only the bare pointer
        self.library.espeak_SetSynthCallback(self.callback)

    def collect(self, samples: ctypes._Pointer, count: int, events: int | None) -> int:
        if samples and count:
            self.pieces.append(np.ctypeslib.as_array(samples, (count,)).copy())
        return 0

    @property
    def version(self) -> str:
        return self.library.espeak_Info(None).decode()

    def say(self, text: str, voice: str, rate: int, pitch: int, pitch_range: int) -> np.ndarray:
        """Samples of `text` in [-1, 1] without the silence around them; rate in words a minute, pitch in 0..100."""
        if self.library.espeak_SetVoiceByName(voice.encode()) != 0:
            raise SystemExit(f"eSpeak NG has no voice '{voice}'.")
        for which, value in ((self.RATE, rate), (self.PITCH, pitch), (self.RANGE, pitch_range)):
            self.library.espeak_SetParameter(which, value, 0)
        self.library.espeak_ng_SetRandSeed(1)  # flutter and breath are random
        self.pieces.clear()
        encoded = text.encode()
        self.library.espeak_Synth(encoded, len(encoded) + 1, 0, 0, 0, self.UTF8, None, None)
        self.library.espeak_Synchronize()
        wave = np.concatenate(self.pieces).astype(np.float32) / 32768
        loud = np.flatnonzero(np.abs(wave) > 0.01 * np.abs(wave).max())
        return wave[loud[0] : loud[-1] + 1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("src/limbeck/data/assets/spoken-digits.npz"))
    arguments = parser.parse_args()
    speaker = Speaker()
    draw = np.random.default_rng(1)
    voices = [(name, f"{accent}+{v}") for name, some in VARIANTS.items() for v in some.split() for accent in ACCENTS]
    clips, labels, owners = [], [], []
    for number, (_, voice) in enumerate(voices):
        rate, pitch, pitch_range = int(draw.integers(130, 221)), int(draw.integers(25, 76)), int(draw.integers(25, 76))
        for digit, word in enumerate(WORDS):
            wave = speaker.say(word, voice, rate, pitch, pitch_range)
            mel = log_mel(wave, speaker.rate, mels=MELS, frames=FRAMES, seconds=SECONDS)
            clips.append(np.round(mel * LEVELS).astype(np.uint8))
            labels.append(digit)
            owners.append(number)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(
        arguments.out,
        spectrogram=np.stack(clips),
        label=np.array(labels, np.uint8),
        voice=np.array(owners, np.uint16),
        voice_names=np.array([name for _, name in voices]),
        voice_split=np.array([split for split, _ in voices]),
        levels=np.uint8(LEVELS),
        made_with=np.array(f"eSpeak NG {speaker.version}, {speaker.rate} Hz"),
    )
    size = arguments.out.stat().st_size
    print(f"{len(clips):,} clips of {len(voices)} voices, {size / 1e6:.2f} MB: {arguments.out}")


if __name__ == "__main__":
    main()
