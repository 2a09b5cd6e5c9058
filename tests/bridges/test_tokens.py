import torch

from limbeck.bridges import MapToTokens, Pool, Spread, TokensToMap


def test_tokens_lie_on_the_map_row_by_row():
    tokens = torch.arange(6.0).view(1, 6, 1).expand(1, 6, 2)
    assert TokensToMap((2, 3))(tokens)[0, 1].tolist() == [[0, 1, 2], [3, 4, 5]]


def test_there_and_back_is_nothing():
    x = torch.randn(2, 6, 3)
    assert torch.equal(MapToTokens()(TokensToMap((2, 3))(x)), x)


def test_a_token_before_the_others_is_left_out_and_the_mean_takes_its_place():
    x = torch.randn(2, 7, 3)
    pixels = TokensToMap((2, 3), extra=1)(x)
    assert torch.equal(pixels.flatten(2).transpose(1, 2), x[:, 1:])
    back = MapToTokens(extra=1)(pixels)
    assert torch.equal(back[:, 1:], x[:, 1:])
    torch.testing.assert_close(back[:, 0], x[:, 1:].mean(1))


def test_pool_is_the_mean_and_spread_repeats():
    x = torch.randn(2, 3, 4, 5)
    torch.testing.assert_close(Pool()(x), x.mean((2, 3)))
    tokens = torch.randn(2, 6, 3)
    torch.testing.assert_close(Pool(channels=-1)(tokens), tokens.mean(1))
    vector = torch.randn(2, 3)
    assert torch.equal(Spread((4, 5))(vector), vector[:, :, None, None].expand(2, 3, 4, 5))
    assert torch.equal(Spread((6,), channels=-1)(vector), vector[:, None].expand(2, 6, 3))
    torch.testing.assert_close(Pool()(Spread((4, 5))(vector)), vector)
