"""Sound: tell instruments apart, synthesised from a seed, by the log-mel spectrograms of five notes of each."""

import numpy as np

from mamlkit import register_dataset

RATE, SAMPLES, WINDOW, HOP = 8000, 4096, 512, 128


def log_mel(waves, n_mels):
    """Return log-mel spectrograms (n, 1, n_mels, frames), roughly of mean 0 and deviation 1, of waves (n, SAMPLES)."""
    frames = np.lib.stride_tricks.sliding_window_view(waves, WINDOW, axis=1)[:, ::HOP] * np.hanning(WINDOW)
    power = np.abs(np.fft.rfft(frames)) ** 2  # (n, frames, WINDOW / 2 + 1)
    edges = 700 * (
        10 ** (np.linspace(0, 2595 * np.log10(1 + RATE / 1400), n_mels + 2) / 2595) - 1
    )  # equal steps of mel
    low, centre, high = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    at = np.fft.rfftfreq(WINDOW, 1 / RATE)
    filters = np.clip(np.minimum((at - low) / (centre - low), (high - at) / (high - centre)), 0, None)
    return ((np.log(power @ filters.T + 1e-3).swapaxes(1, 2)[:, None] - 1) / 3).astype(np.float32)


def play(draw, instrument, n):
    """Return n notes (n, SAMPLES) of an instrument: strengths of its harmonics, how fast each fades, vibrato, noise."""
    harmonics = np.arange(1, 9)
    strengths, fading = instrument.dirichlet(np.full(8, 0.5)), instrument.uniform(1, 12, 8)
    vibrato, noise = instrument.uniform(0, 0.03), instrument.uniform(0, 0.05)
    pitch = 110 * 2 ** draw.uniform(0, 2, (n, 1))  # two octaves: no class is known by its pitch
    time = np.arange(SAMPLES) / RATE
    phase = 2 * np.pi * pitch * (time + vibrato * np.sin(2 * np.pi * 6 * time) / 38)
    tones = np.sin(phase[:, None] * harmonics[:, None]) * np.exp(-fading[:, None] * time)  # (n, 8, SAMPLES)
    return np.einsum("h,nhs->ns", strengths, tones) + noise * draw.standard_normal((n, SAMPLES))


def instruments(config):
    """Build 60 instruments of 20 notes each."""
    names = {"train": range(36), "val": range(36, 46), "test": range(46, 60)}
    return {
        split: {
            f"instrument_{number}": log_mel(
                play(np.random.default_rng([1, number]), np.random.default_rng([0, number]), 20), config.input_shape[1]
            )
            for number in numbers
        }
        for split, numbers in names.items()
    }


register_dataset("instruments", instruments)
