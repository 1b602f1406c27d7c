// Every bound of the system that is not a property of a model or a flag, named once. Errors that
// refuse something for being over a bound quote the constant's value. Header-only, std only: the
// engine includes it too.
#pragma once

#include <cstddef>
#include <cstdint>

namespace ultraspeed::limits {

// ---- What a request may hold (inference.proto) ----
inline constexpr size_t kPromptBytesMax = 8u << 20;
inline constexpr int kMessagesMax = 512;
inline constexpr int kToolsMax = 128;
inline constexpr size_t kToolNameBytesMax = 128;
inline constexpr int kToolCallsMax = 128;  // of one message
inline constexpr size_t kToolCallIdBytesMax = 128;
inline constexpr int kStopStringsMax = 8;
inline constexpr size_t kStopStringBytesMax = 128;
inline constexpr int kLogprobsMax = 8;
inline constexpr size_t kClientRequestIdBytesMax = 256;
inline constexpr size_t kModelNameBytesMax = 256;
inline constexpr float kTemperatureMax = 2.0f;
inline constexpr int kPriorityMin = -100;
inline constexpr int kPriorityMax = 100;

// ---- Between router and worker (worker.proto) ----
inline constexpr size_t kRequestIdBytesMax = 64;
inline constexpr size_t kCacheScopeBytesMax = 128;
inline constexpr int kPrefixSnapshotsMax = 4096;
inline constexpr int kStopTokenIdsMax = 64;
inline constexpr int kGrpcMessageBytesMax = 16 << 20;  // a prompt of 1M token ids is below 5 MiB
inline constexpr int kGrpcMetadataBytesMax = 16 << 10;
inline constexpr int kGrpcConcurrentStreamsMax = 1024;  // per connection
inline constexpr int kChunkTokensMax =
    4096;  // tokens of one streamed chunk, however slow its reader; with 8 logprobs below 1 MiB
inline constexpr int kListRecordsMax = 1024;  // ids of one ListRecords call
inline constexpr size_t kTokenizerPartBytes = 1u << 20;
inline constexpr size_t kTokenizerBytesMax = 256u << 20;

// ---- Router ----
inline constexpr int kQueueRequestsMax = 1024;
inline constexpr size_t kQueueBytesMax = 1u << 30;
inline constexpr int kWorkersMax = 1024;
inline constexpr size_t kHttpBodyBytesMax =
    2 * kPromptBytesMax;  // JSON escapes; the prompt itself is checked again
inline constexpr size_t kHttpBodiesBytesMax = 1u << 30;  // of all requests that are being read
inline constexpr size_t kHttpHeaderBytesMax = 64u << 10;
inline constexpr int kHttpConnectionsMax = 4096;
inline constexpr int kHttpThreads = 4;
inline constexpr size_t kHttpInputBytesMax = 64u << 10;  // read ahead of the request under way
inline constexpr size_t kHttpWriteBytesMax = 64u << 10;  // of one write, which has a timeout
inline constexpr int kHttpSendBufferBytes = 128 << 10;   // the kernel's, of one connection
inline constexpr int kHttpHeaderTimeoutS = 10;           // from a request's first byte
inline constexpr int kHttpBodyTimeoutS = 60;             // from the end of its header
inline constexpr int kHttpIdleTimeoutS = 75;             // between requests
inline constexpr int kHttpWriteTimeoutS = 30;            // a client that reads nothing is cut
inline constexpr int kHttpPingIntervalS = 10;            // silence of a stream before a ping
inline constexpr int kHttpLingerS = 2;  // for a client to read the last answer and close
inline constexpr int kJsonDepthMax = 64;
inline constexpr size_t kApiKeyBytesMax = 256;
inline constexpr int kPlacementAttemptsMax =
    4;  // workers that one request is offered to before its next token
inline constexpr int kFailureRetriesMax = 1;  // of these, after a worker failed rather than refused
// Workers that may fail under one stream that has begun and is continued elsewhere: more than a
// rolling update takes, and all that a request which brings workers down can reach.
inline constexpr int kStreamFailuresMax = 3;
inline constexpr size_t kInlineTokenizeBytes =
    16u << 10;  // longer texts are tokenized off the gRPC threads
inline constexpr int kTokenizeThreads = 2;
inline constexpr size_t kTokenizeQueue = 256;
inline constexpr int kBlockingThreads = 8;  // that wait for the store and the shared limiter
inline constexpr size_t kBlockingQueue = 4096;
inline constexpr int kLikelyCompletionTokens =
    1024;  // what queue and token limits expect of a request that may generate more
inline constexpr size_t kUnsentTextBytesMax =
    256u << 10;  // a slow client's text; beyond it the worker's stream is not read

// ---- Constrained decoding (common/grammar) ----
inline constexpr size_t kSchemaBytesMax = 128u << 10;
inline constexpr int kSchemaDepthMax = 64;         // levels of JSON
inline constexpr int kSchemaPropertiesMax = 5000;  // of all its objects
// What may come next is as much as a schema's alternatives that begin alike and its properties that
// may be left out. At these bounds a mask takes 3 ms at most (ultraspeed-bench grammar), for which
// every request of the round waits.
inline constexpr int kSchemaOptionalMax = 512;      // properties that are not required
inline constexpr int kSchemaAlternativesMax = 128;  // of all its anyOf and oneOf, nulls apart
inline constexpr size_t kStrictSchemasBytesMax = 256u << 10;  // of all strict tools of a request
inline constexpr int kArgumentTypeStepsMax = 1 << 16;  // schemas and values looked at for a tool's
inline constexpr int kSchemaEnumValuesMax = 1000;      // of one enum
inline constexpr int kPatternDepthMax = 64;            // groups in each other
inline constexpr int kPatternPartsMax = 4096;          // of one pattern, repetitions written out
inline constexpr int kSchemaAutomatonStepsMax = 1 << 20;  // of all patterns and multiples
inline constexpr size_t kSchemaErrorBytesMax = 512;  // of the place, and of what is wrong there
inline constexpr int kGrammarRulesMax = 16384;
inline constexpr int kGrammarNodesMax = 1 << 18;
inline constexpr int kGrammarStackDepthMax = kJsonDepthMax;  // so no answer is nested deeper
inline constexpr int kGrammarFramesMax = 32768;              // known at once, of one grammar
inline constexpr int kTokenMasksMax = 256;                   // kept of one grammar
inline constexpr int kTextMasksMax = 128;                    // likewise, of places inside of text
inline constexpr int kConstraintsMax = 32;                   // compiled grammars that are kept
inline constexpr int kJsonIndentMax = 32;                    // after a line break
inline constexpr int kJsonIntegerDigitsMax = 18;             // fits in 64 bits
inline constexpr int kJsonFractionDigitsMax = 18;
inline constexpr int kJsonExponentDigitsMax = 2;  // fits in a double
inline constexpr int kJsonBoundedDigitsMax = 15;  // of a number with bounds: each is another double

// ---- Worker start-up ----
inline constexpr size_t kManifestBytesMax = 16u << 20;  // sha256 sums of a checkpoint's files

// ---- Worker engine ----
inline constexpr int kWaitingRequestsMax =
    64;  // accepted, but without a slot and pages; the router holds the real queue
inline constexpr int kSequencesMax = 256;  // slots of one worker
// Rows of a round by default. A GPU reads all experts for any chunk of a prompt, so it takes long
// ones: of the served shape 15 thousand tokens a second by 2048 rows, 9 thousand by 512.
inline constexpr int kGpuBatchTokens = 2048;
inline constexpr int kCpuBatchTokens = 512;
inline constexpr size_t kTerminalRecordsMax = 65536;  // ended requests that a worker can tell about
inline constexpr int kUltraspeedBatchMax = 2;  // ultraspeed sequences that share a decode round
inline constexpr int kStandardFloorRounds =
    8;  // after so many rounds without them, standard sequences get one
inline constexpr int kPrefillTokensPerRound = 256;  // rows of prefill beside running decodes
inline constexpr int kPrefillTokensBesideUltraspeed = 64;

// ---- Processes ----
inline constexpr size_t kConfigBytesMax = 1u << 20;
inline constexpr size_t kTlsFileBytesMax = 1u << 20;
inline constexpr size_t kLogValueBytesMax = 1024;  // longer strings are cut
inline constexpr int kMetricsThreads = 2;

}  // namespace ultraspeed::limits
