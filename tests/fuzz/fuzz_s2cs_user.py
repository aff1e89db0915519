"""S2CS, as a user with a certificate may speak to it, beside a stream of another user."""

from fuzzing import fuzz_party, hostile_parties

if __name__ == "__main__":
    fuzz_party(hostile_parties.UserAtControlServer)
