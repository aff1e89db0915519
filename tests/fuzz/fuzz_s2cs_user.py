"""S2CS, with input from a user with a certificate, beside a stream of another user."""

from fuzzing import fuzz_party, hostile_parties

if __name__ == "__main__":
    fuzz_party(hostile_parties.UserAtControlServer)
