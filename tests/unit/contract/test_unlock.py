from keibi.contract.unlock import is_code, new_challenge, unlock_code


def test_a_code_frees_only_with_its_own_challenge_and_secret():
    secret, challenge = b"s" * 32, new_challenge()
    code = unlock_code(secret, challenge)
    assert is_code(secret, challenge, code.lower().replace("-", " "))
    assert not is_code(secret, new_challenge(), code)
    assert not is_code(b"t" * 32, challenge, code)


def test_without_a_secret_nothing_is_a_code():
    assert not is_code(b"", "AAAA", unlock_code(b"", "AAAA"))
