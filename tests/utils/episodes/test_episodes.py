"""Episodes are pure functions of (seed, split, index)."""

import hashlib
import itertools
import json

import numpy as np
import pytest

from utils.episodes.drawing import (
    EpisodeShape,
    combinations,
    draw_episodes,
    fitting_fractions,
    split_classes,
    training_shape,
)
from utils.episodes.randomness import below, philox_4x32_10, random_words, sample_without_replacement

CLASS_SIZES = np.array([20, 7, 9, 30, 20, 20, 8, 12])

GOLDEN_CLASSES = [[0, 6, 5, 4, 3], [4, 3, 0, 2, 5], [1, 2, 3, 6, 0]]
GOLDEN_DIGEST = "01c8e52da9bd64fe0b3cf4c6c79b99e7a99a36d15c4aa865071354fc175f9c13"
SPLIT_DIGEST = "dc4734094180df1a6ea25ed158ca05cd395ae846b776db8db0a70a516ae91b84"


def draw(indices, split="train", seed=0, n_way=5, n_shot=2, n_query=3, **options):
    return draw_episodes(
        seed=seed,
        split=split,
        indices=indices,
        class_sizes=CLASS_SIZES,
        shape=EpisodeShape(n_way, n_shot, n_query),
        **{"rotate": True} | options,
    )


def same(a, b):
    return all(
        np.array_equal(getattr(a, name), getattr(b, name)) for name in ("classes", "images", "rotations", "seeds")
    )


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ([0, 0, 0, 0], (0, 0), [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
        ([0xFFFFFFFF] * 4, (0xFFFFFFFF, 0xFFFFFFFF), [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
        (
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
            (0xA4093822, 0x299F31D0),
            [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
        ),
    ],
)
def test_philox_equals_the_published_test_vectors(counter, key, expected):
    """Random123 1.14, tests/kat_vectors, lines philox4x32 10."""
    assert philox_4x32_10(np.array(counter, dtype=np.uint64), key).tolist() == expected


def test_episodes_are_these_whatever_the_library_versions():
    drawn = draw([0, 1, 2**40], seed=123)
    assert drawn.classes.tolist() == GOLDEN_CLASSES
    digest = hashlib.sha256(
        b"".join(part.astype("<i8").tobytes() for part in (drawn.classes, drawn.images, drawn.rotations, drawn.seeds))
    )
    assert digest.hexdigest() == GOLDEN_DIGEST


def test_the_same_index_gives_the_same_episode():
    assert same(draw(range(50)), draw(range(50)))


def test_a_batch_equals_its_single_episodes_in_any_order():
    batch = draw([7, 3, 900])
    for place, index in enumerate([7, 3, 900]):
        alone = draw([index])
        for name in ("classes", "images", "rotations", "seeds"):
            assert np.array_equal(getattr(batch, name)[place], getattr(alone, name)[0])


def test_classes_of_an_episode_are_distinct_and_support_and_query_never_overlap():
    drawn = draw(range(300))
    for classes, images in zip(drawn.classes, drawn.images, strict=True):
        assert len(set(classes)) == 5
        for class_rank, places in zip(classes, images, strict=True):
            assert len(set(places)) == 5
            assert 0 <= places.min() <= places.max() < CLASS_SIZES[class_rank]


def test_splits_and_seeds_have_streams_of_their_own():
    episodes = [draw(range(20), split=split, seed=seed) for split in ("train", "val", "test") for seed in (0, 1, 2**32)]
    assert len({episode.classes.tobytes() for episode in episodes}) == len(episodes)
    assert len({seed for episode in episodes for seed in episode.seeds}) == 20 * len(episodes)


def test_neighbouring_seeds_share_no_episodes():
    """In the reference, training episodes of seeds 0 and 2 were the same ones, shifted."""
    one, other = (draw(range(3000), seed=seed) for seed in (0, 2))
    assert not {images.tobytes() for images in one.images} & {images.tobytes() for images in other.images}


def test_more_query_images_change_neither_classes_nor_rotations():
    few, many = draw(range(9), n_query=1), draw(range(9), n_query=5)
    assert np.array_equal(few.classes, many.classes) and np.array_equal(few.rotations, many.rotations)


def test_without_rotation_everything_else_stays():
    turned, straight = draw(range(9)), draw(range(9), rotate=False)
    assert not straight.rotations.any() and np.array_equal(turned.images, straight.images)
    assert set(draw(range(100)).rotations.ravel()) == {0, 1, 2, 3}


def test_classes_and_images_are_drawn_uniformly():
    """Chi-squared of counts, far below what any bias in the shuffle would give."""
    drawn = draw(range(20_000), n_way=3, n_shot=1, n_query=2)
    for place in range(3):
        counts = np.bincount(drawn.classes[:, place], minlength=len(CLASS_SIZES))
        expected = 20_000 / len(CLASS_SIZES)
        assert ((counts - expected) ** 2 / expected).sum() < 30  # 7 degrees of freedom: p < 1e-4
    of_class_0 = drawn.images[drawn.classes == 0]
    for place in range(3):
        counts = np.bincount(of_class_0[:, place], minlength=20)
        assert ((counts - counts.mean()) ** 2 / counts.mean()).sum() < 55  # 19 degrees of freedom: p < 3e-5


def test_drawing_all_of_them_is_a_permutation():
    words = random_words(0, "train", range(40), 0, 7)
    assert (np.sort(sample_without_replacement(words, np.full(40, 7)), axis=1) == np.arange(7)).all()


def test_bounded_numbers_are_the_exact_upper_half_of_the_product():
    words = random_words(3, "val", [0], 0, 100)[0]
    for bound in (1, 3, 1150, 2**32 - 1):
        assert below(words, bound).tolist() == [int(word) * bound >> 64 for word in words]


def test_impossible_draws_say_what_is_wrong():
    with pytest.raises(ValueError, match="cannot draw 9 different ones out of 8"):
        draw([0], n_way=9)
    with pytest.raises(ValueError, match=r"cannot draw 11 different ones out of \d"):
        draw(range(50), n_query=9)
    with pytest.raises(ValueError, match='unknown stream "valid"; there are: train, val, test'):
        draw([0], split="valid")
    with pytest.raises(ValueError, match="index -1 is below 0"):
        draw([-1])
    with pytest.raises(ValueError, match="seed -1 is outside"):
        draw([0], seed=-1)


def test_class_split_is_the_rule_of_the_reference():
    """Worked through as in the reference's load_dataset: base seed, shuffle of ranks, cuts by int()."""
    names = [f"{rank:02}" for rank in range(37)]
    split = split_classes(names, [0.5, 0.2, 0.9], seed=4)
    ranks = np.arange(37)
    np.random.RandomState(np.random.RandomState(4).randint(1, 999999)).shuffle(ranks)
    assert split["train"] == sorted(names[rank] for rank in ranks[:18])
    assert split["val"] == sorted(names[rank] for rank in ranks[18:25])
    assert split["test"] == sorted(names[rank] for rank in ranks[25:])


def test_class_split_of_1623_classes_never_changes():
    names = [f"{rank:04}" for rank in range(1623)]
    split = split_classes(names, [0.70918052988, 0.03080714725, 0.2606284658], seed=0)
    assert {name: len(members) for name, members in split.items()} == {"train": 1150, "val": 50, "test": 423}
    assert sorted(name for members in split.values() for name in members) == names
    assert hashlib.sha256(json.dumps(split, sort_keys=True).encode()).hexdigest() == SPLIT_DIGEST


def test_fitting_fractions_give_each_split_its_least_number_of_classes_and_mini_imagenet_its_own():
    """For every number of classes that can be dealt so, by the rule of `split_classes`."""
    for n_classes in (*range(1, 90), 1000, 123_456):
        for least in itertools.product((1, 5, 20), (1, 5, 7), (1, 5, 40)):
            fractions = fitting_fractions(n_classes, least)
            assert (fractions is None) == (sum(least) > n_classes)
            if fractions is not None:
                assert sum(fractions) <= 1
                sizes = [len(names) for names in split_classes(range(n_classes), fractions, seed=0).values()]
                assert all(size >= needed for size, needed in zip(sizes, least, strict=True))
    sizes = {n: split_classes(range(n), fitting_fractions(n, (5, 5, 5)), seed=0) for n in (24, 100)}
    assert [len(names) for names in sizes[24].values()] == [14, 5, 5]
    assert [len(names) for names in sizes[100].values()] == [64, 16, 20]


def test_every_meta_batch_draws_one_shape_by_its_number():
    shapes = combinations((5, 20), (1, 5), (3,))
    assert shapes == tuple(EpisodeShape(n_way, n_shot, 3) for n_way in (5, 20) for n_shot in (1, 5))
    drawn = [training_shape(shapes, 7, meta_batch) for meta_batch in range(4000)]
    assert drawn[1234] == training_shape(shapes, 7, 1234)
    assert all(900 < drawn.count(shape) < 1100 for shape in shapes)  # 1000 +- 3.6 standard deviations
    assert drawn != [training_shape(shapes, 8, meta_batch) for meta_batch in range(4000)]
    assert training_shape(shapes[:1], 7, 3) == shapes[0]


def test_a_pool_of_tasks_is_met_again_and_again_with_other_noise():
    pool, endless = draw(range(25), n_tasks=10), draw(range(10))
    for name in ("classes", "images", "rotations"):
        assert np.array_equal(getattr(pool, name), np.concatenate([getattr(endless, name)] * 3)[:25])
    assert np.array_equal(pool.seeds, draw(range(25)).seeds)


def with_own_shots(indices, least=1, sizes=(3, 20, 7, 2, 9, 30, 4), seed=0):
    return draw_episodes(
        seed=seed, split="test", indices=indices, class_sizes=np.array(sizes), shape=EpisodeShape(5, 4, 1, least),
        rotate=False,
    )  # fmt: skip


def test_each_class_has_shots_of_its_own_up_to_its_images_but_the_queries():
    sizes, drawn = np.array((3, 20, 7, 2, 9, 30, 4)), with_own_shots(range(400))
    shots = (drawn.images[:, :, :4] >= 0).sum(-1)
    for rank, size in enumerate(sizes.tolist()):
        found = shots[drawn.classes == rank]
        most = min(4, size - 1)
        counts = np.bincount(found, minlength=5)[1 : most + 1]
        assert set(found.tolist()) == set(range(1, most + 1)) and np.abs(counts / len(found) - 1 / most).max() < 0.1
    for classes, images, of_task in zip(drawn.classes, drawn.images, shots, strict=True):
        for rank, places, shot in zip(classes, images, of_task, strict=True):
            assert (places[shot:4] == -1).all() and (places[:shot] >= 0).all() and 0 <= places[4] < sizes[rank]
            chosen = [*places[:shot], places[4]]
            assert len(set(chosen)) == shot + 1 and max(chosen) < sizes[rank]
    assert drawn.support_sizes(4).tolist() == shots.sum(1).tolist()


def test_shots_of_classes_are_pure_functions_of_the_number_and_change_nothing_else():
    whole, some = with_own_shots(range(30)), with_own_shots([17, 4])
    assert same(whole.at([17, 4]), some) and not same(whole, with_own_shots(range(30), seed=1))
    sizes = (20, 7, 9, 30, 20, 20, 8)
    assert same(with_own_shots(range(30), None, sizes), with_own_shots(range(30), 4, sizes))
    equal, own = with_own_shots(range(30), None, sizes), with_own_shots(range(30), 1, sizes)
    assert np.array_equal(equal.classes, own.classes)
    full = own.images[:, :, 3] >= 0
    assert np.array_equal(equal.images[full], own.images[full])
    with pytest.raises(ValueError, match="cannot draw"):
        with_own_shots(range(30), 2)


def test_a_shape_says_its_shots():
    assert str(EpisodeShape(7, 5, 1, 1)) == "7 way 1 to 5 shot 1 query" and EpisodeShape(7, 5, 1, 1).shots == "1-5"
    assert str(EpisodeShape(7, 5, 1)) == "7 way 5 shot 1 query" and EpisodeShape(7, 5, 1).shots == 5
    assert (EpisodeShape(7, 5, 1, 1).n_images, EpisodeShape(7, 5, 1, 1).least_images) == (6, 2)
