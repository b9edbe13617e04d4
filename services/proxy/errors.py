# ruff: noqa: N818 (a refusal is named for what is wrong; that it is an error is said by its base)
"""Owns the proxy's refusals.

ProxyError (domain "tollkeeper.proxy")
├── ApiKeyInvalid              API_KEY_INVALID               401  no such key
├── ApiKeyRevoked              API_KEY_REVOKED               401
├── ApiKeyExpired              API_KEY_EXPIRED               401
├── IdentityProviderUnavailable IDENTITY_PROVIDER_UNAVAILABLE 503 of callers with an OpenID Connect token
├── KeyTypeNotAllowed          KEY_TYPE_NOT_ALLOWED          403  an admin key calling a model
├── KeyNotFound                KEY_NOT_FOUND                 404
├── KeyNotActive               KEY_NOT_ACTIVE                400  it was revoked or has expired
├── KeyReplaced                KEY_REPLACED                  400  it was rotated before
├── AccountNotFound            ACCOUNT_NOT_FOUND             404  no entitlement is known of the account
├── IdempotencyConflict        IDEMPOTENCY_CONFLICT          409
├── IdempotencyInProgress      IDEMPOTENCY_IN_PROGRESS       409  the first call with the key still runs
├── AnswerNotKept              ANSWER_NOT_KEPT               409  answered and charged; the answer is not there
├── AnswerNotPassedOn          ANSWER_NOT_PASSED_ON          400  too large, or not understood; it is billed
├── AnswersUnavailable         ANSWERS_UNAVAILABLE           503  of calls with an idempotency key
├── AccountSuspended           ACCOUNT_SUSPENDED             403
├── ProviderNotAllowed         PROVIDER_NOT_ALLOWED          403
├── ModelNotAllowed            MODEL_NOT_ALLOWED             403
├── ModelNotPriced             MODEL_NOT_PRICED              403  never served free
├── ToolNotPriced              TOOL_NOT_PRICED               403  a provider's tool with a fee of its own
├── ModelAmbiguous             MODEL_AMBIGUOUS               400  several providers have a model of that name
├── FormNotSpoken              FORM_NOT_SPOKEN               400  the model's provider is not called in this form
├── ModelNotFound              MODEL_NOT_FOUND               404  of the models' listing
├── RequestTooLargeForPlan     REQUEST_TOO_LARGE_FOR_PLAN    400
├── RateLimited                RATE_LIMITED                  429
├── LedgerUnavailable          LEDGER_UNAVAILABLE            503  no hold, so nothing was called
├── CatalogueUnavailable       CATALOGUE_UNAVAILABLE         503  no price is known yet
├── ProviderNotConfigured      PROVIDER_NOT_CONFIGURED       501
├── ProviderUnavailable        PROVIDER_UNAVAILABLE          503
├── ProviderRateLimited        PROVIDER_RATE_LIMITED         429  the provider's own limit on the model
├── ProviderRefused            PROVIDER_REFUSED              400  of the typed form: the provider's own refusal
├── ProviderTimeout            PROVIDER_TIMEOUT              504
├── ProviderCredentialRefused  PROVIDER_CREDENTIAL_REFUSED   503  the provider refuses the operator's key
└── ClientStalled              CLIENT_STALLED                504  the client stopped reading its answer

What the ledger refuses (INSUFFICIENT_CREDIT, LIMIT_EXCEEDED …) passes through as the ledger said it.
"""

from __future__ import annotations

from services.kit.errors import Kind, ServiceError


class ProxyError(ServiceError):
    """A refusal of the proxy."""

    domain = "tollkeeper.proxy"


class IdentityProviderUnavailable(ProxyError):
    """The keys of the identity provider that is configured could not be fetched."""

    kind = Kind.UNAVAILABLE
    reason = "IDENTITY_PROVIDER_UNAVAILABLE"
    advice = "Retry; callers with API keys are not concerned."


class ApiKeyInvalid(ProxyError):
    """The credential is no key that was ever made here."""

    kind = Kind.UNAUTHENTICATED
    reason = "API_KEY_INVALID"
    advice = "Send a key as `authorization: Bearer`, `x-api-key` or `x-goog-api-key`; check that it is whole."


class ApiKeyRevoked(ProxyError):
    """The key was revoked."""

    kind = Kind.UNAUTHENTICATED
    reason = "API_KEY_REVOKED"
    advice = "Use another key; a revoked one does not come back."


class ApiKeyExpired(ProxyError):
    """The key has ended by itself."""

    kind = Kind.UNAUTHENTICATED
    reason = "API_KEY_EXPIRED"
    advice = "Ask for a new key."


class KeyTypeNotAllowed(ProxyError):
    """An operator's key was used to call a model: nobody would pay for it."""

    kind = Kind.DENIED
    reason = "KEY_TYPE_NOT_ALLOWED"
    advice = "Call models with a standard or internal key; admin keys are for /api/admin."


class KeyNotFound(ProxyError):
    """No key has this id."""

    kind = Kind.NOT_FOUND
    reason = "KEY_NOT_FOUND"
    advice = "List the keys to find the id; it is not the key itself."


class KeyNotActive(ProxyError):
    """The key was revoked or has expired, so it cannot be rotated."""

    kind = Kind.PRECONDITION
    reason = "KEY_NOT_ACTIVE"
    advice = "Make a new key."


class KeyReplaced(ProxyError):
    """The key was rotated before; another one has taken its place."""

    kind = Kind.PRECONDITION
    reason = "KEY_REPLACED"
    advice = "Rotate the key named in `replaced_by_key_id`."


class AccountNotFound(ProxyError):
    """The proxy was told of no entitlement of this account."""

    kind = Kind.NOT_FOUND
    reason = "ACCOUNT_NOT_FOUND"
    advice = "Open the account first; a new account is known here within a second."


class IdempotencyConflict(ProxyError):
    """The request id, or idempotency key, was used for something else."""

    kind = Kind.CONFLICT
    reason = "IDEMPOTENCY_CONFLICT"
    advice = "Use a new request id or idempotency key for a new request, and the same body for a repeat."


class IdempotencyInProgress(ProxyError):
    """The first call with this idempotency key has not ended yet."""

    kind = Kind.ABORTED
    reason = "IDEMPOTENCY_IN_PROGRESS"
    advice = "Repeat after retry-after, with the same key and body: you get the first call's answer."


class AnswerNotKept(ProxyError):
    """The call with this idempotency key was answered and charged, and its answer cannot be given again."""

    kind = Kind.CONFLICT
    reason = "ANSWER_NOT_KEPT"
    advice = "To make the call again, and pay for it again, use a new idempotency key."


class AnswerNotPassedOn(ProxyError):
    """The provider's answer is too large to be passed on, or not understood. It was made, and is billed."""

    kind = Kind.INVALID
    reason = "ANSWER_NOT_PASSED_ON"
    advice = "Ask for less in one answer (fewer choices, no log probabilities), or for a stream."


class AnswersUnavailable(ProxyError):
    """The store of answers did not answer, so a call with an idempotency key cannot be made or answered."""

    kind = Kind.UNAVAILABLE
    reason = "ANSWERS_UNAVAILABLE"
    advice = "Repeat with the same idempotency key and body: the call is charged once."


class AccountSuspended(ProxyError):
    """The account may not call anything now."""

    kind = Kind.DENIED
    reason = "ACCOUNT_SUSPENDED"
    advice = "Settle what is open on the account, or ask the operator."


class ProviderNotAllowed(ProxyError):
    """The plan does not include the provider."""

    kind = Kind.DENIED
    reason = "PROVIDER_NOT_ALLOWED"
    advice = "Choose a plan that includes the provider, or another model."


class ModelNotAllowed(ProxyError):
    """The plan or the key does not include the model."""

    kind = Kind.DENIED
    reason = "MODEL_NOT_ALLOWED"
    advice = "List the models to see which may be called with this key."


class ModelNotPriced(ProxyError):
    """The model has no price in force, so it is not served."""

    kind = Kind.DENIED
    reason = "MODEL_NOT_PRICED"
    advice = "Check the model's name; ask the operator to publish a price."


class ToolNotPriced(ProxyError):
    """The request uses a tool that the provider runs and bills by itself, and that has no price here."""

    kind = Kind.DENIED
    reason = "TOOL_NOT_PRICED"
    advice = "Leave the tool out; tools that your own code runs are served."


class ModelAmbiguous(ProxyError):
    """Several providers of the plan have a model of this name."""

    kind = Kind.INVALID
    reason = "MODEL_AMBIGUOUS"
    advice = "Name the provider: POST /api/ai/{provider}."


class FormNotSpoken(ProxyError):
    """The model's provider does not speak the wire format of the request."""

    kind = Kind.INVALID
    reason = "FORM_NOT_SPOKEN"
    advice = "Call the model in its provider's own form, or by /v1/chat/completions."


class ModelNotFound(ProxyError):
    """No model of this name may be called with this key."""

    kind = Kind.NOT_FOUND
    reason = "MODEL_NOT_FOUND"
    advice = "List the models to see which may be called with this key."


class RequestTooLargeForPlan(ProxyError):
    """Input and output cap together are above the plan's tokens per request."""

    kind = Kind.INVALID
    reason = "REQUEST_TOO_LARGE_FOR_PLAN"
    advice = "Shorten the input, lower the output cap, or choose a larger plan."


class RateLimited(ProxyError):
    """More requests or tokens in a minute, or calls at once, than the key or account may; `scope` says whose it is."""

    kind = Kind.EXHAUSTED
    reason = "RATE_LIMITED"
    advice = "Wait for as long as retry-after says; without it, the call alone is above the limit: make it smaller."


class LedgerUnavailable(ProxyError):
    """The ledger did not answer, so no money is held and nothing was called."""

    kind = Kind.UNAVAILABLE
    reason = "LEDGER_UNAVAILABLE"
    advice = "Retry with backoff. Nothing was charged."


class CatalogueUnavailable(ProxyError):
    """The proxy has not had the prices yet."""

    kind = Kind.UNAVAILABLE
    reason = "CATALOGUE_UNAVAILABLE"
    advice = "Retry with backoff. Operator: check that pricing is up."


class ProviderNotConfigured(ProxyError):
    """This installation has no credential for the provider."""

    kind = Kind.UNIMPLEMENTED
    reason = "PROVIDER_NOT_CONFIGURED"
    advice = "Choose a model of another provider. Operator: set the provider's API key."


class ProviderUnavailable(ProxyError):
    """The provider could not be reached, or broke off before its answer was whole."""

    kind = Kind.UNAVAILABLE
    reason = "PROVIDER_UNAVAILABLE"
    advice = "Retry with backoff. Nothing was charged."


class ProviderRateLimited(ProxyError):
    """The provider has had too many calls for the model, from all that call it here, and wants none for a while."""

    kind = Kind.EXHAUSTED
    reason = "PROVIDER_RATE_LIMITED"
    advice = "Retry after retry-after, or call another model. Nothing was charged."


class ProviderRefused(ProxyError):
    """The provider refused what was asked; its words are in the message."""

    kind = Kind.INVALID
    reason = "PROVIDER_REFUSED"
    advice = "Change the request as the message says. Nothing was charged."


class ProviderTimeout(ProxyError):
    """The provider did not answer in time."""

    kind = Kind.DEADLINE
    reason = "PROVIDER_TIMEOUT"
    advice = "Retry, or ask for a shorter answer. Nothing was charged."


class ProviderCredentialRefused(ProxyError):
    """The provider refuses the key that the operator configured; its words are not for customers."""

    kind = Kind.UNAVAILABLE
    reason = "PROVIDER_CREDENTIAL_REFUSED"
    advice = "Operator: check the provider's API key. Nothing was charged."


class ClientStalled(ProxyError):
    """The client stopped reading its answer; the call went on without it."""

    kind = Kind.DEADLINE
    reason = "CLIENT_STALLED"
    advice = "Read answers as they come. The call was billed for what was used."
