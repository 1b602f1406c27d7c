// A worker without a model: serves worker.proto in this process and answers Generate by a script.
// For tests of the router: timings and faults that a real worker only shows on bad days. Thread
// contract: setters may be called while requests run; scripts run on gRPC threads, one per call.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "grpcpp/server.h"
#include "ultraspeed/v1/worker.grpc.pb.h"

namespace ultraspeed::testing {

class FakeWorker final : public v1::Worker::Service {
 public:
  // What a script writes to. Keeps the books that ListRecords answers from: the usage of the last
  // chunk that the script wanted to write, delivered or not, is what the worker generated.
  class Writer {
   public:
    Writer(const v1::WorkerGenerateRequest& request,
           grpc::ServerWriter<v1::WorkerGenerateChunk>* writer);
    // False once the call is gone.
    bool Write(const v1::WorkerGenerateChunk& chunk);
    const v1::TerminalRecord& record() const { return record_; }
    // gRPC fails a write of a call that is gone before the context says that it was cancelled.
    bool is_gone() const { return is_gone_; }

   private:
    grpc::ServerWriter<v1::WorkerGenerateChunk>* const writer_;
    v1::TerminalRecord record_;
    bool is_gone_ = false;
    int64_t num_first_tokens_ = 0;
    absl::Time first_tokens_;
  };
  using Script =
      std::function<grpc::Status(const v1::WorkerGenerateRequest&, grpc::ServerContext*, Writer*)>;

  struct Options {
    int port = 0;  // 0 = a free one
    std::string model = "fake";
    std::string weights_sha256 = "weights-1";
    std::string tokenizer_json = {};
    bool wrong_tokenizer_hash = false;
    int64_t context_tokens = 4096;
    int max_running_requests = 64;  // as GetLoad reports it; nothing is refused
    Script script = {};
  };

  explicit FakeWorker(Options options);
  ~FakeWorker() override;

  int port() const { return port_; }
  std::string address() const;
  void SetScript(Script script);
  void SetDraining(bool draining) { draining_ = draining; }
  // Every control call waits so long; a worker whose process hangs.
  void SetControlDelay(absl::Duration delay);
  // Ends the server as a killed process would: running calls break.
  void Kill();

  int num_requests() const { return num_requests_; }
  int num_running() const { return num_running_; }
  // Calls that their caller left.
  int num_cancelled() const { return num_cancelled_; }
  v1::WorkerGenerateRequest last_request() const;
  // Of every call that ended, by request id.
  std::map<std::string, v1::TerminalRecord> records() const;

  grpc::Status Generate(grpc::ServerContext* context, const v1::WorkerGenerateRequest* request,
                        grpc::ServerWriter<v1::WorkerGenerateChunk>* writer) override;
  grpc::Status ListRecords(grpc::ServerContext*, const v1::ListRecordsRequest* request,
                           v1::ListRecordsResponse* response) override;
  grpc::Status GetLoad(grpc::ServerContext*, const v1::GetLoadRequest*,
                       v1::GetLoadResponse* response) override;
  grpc::Status GetModelInfo(grpc::ServerContext*, const v1::GetModelInfoRequest*,
                            v1::ModelInfo* response) override;
  grpc::Status GetTokenizer(grpc::ServerContext*, const v1::GetTokenizerRequest*,
                            grpc::ServerWriter<v1::TokenizerPart>* writer) override;

 private:
  void DelayControl() const;

  const Options options_;
  mutable absl::Mutex mutex_;
  Script script_ ABSL_GUARDED_BY(mutex_);
  v1::WorkerGenerateRequest last_request_ ABSL_GUARDED_BY(mutex_);
  std::map<std::string, v1::TerminalRecord> records_ ABSL_GUARDED_BY(mutex_);
  std::set<std::string> live_ ABSL_GUARDED_BY(mutex_);
  std::atomic<int64_t> control_delay_ms_{0};
  std::atomic<bool> draining_{false};
  std::atomic<int> num_requests_{0};
  std::atomic<int> num_running_{0};
  std::atomic<int> num_cancelled_{0};
  int port_ = 0;
  std::unique_ptr<grpc::Server> server_;
};

// ---- Scripts ----

// False when the call was cancelled meanwhile.
bool SleepUnlessCancelled(grpc::ServerContext* context, absl::Duration duration);

// What one chunk of a script does, in this order: waits, then writes its tokens.
struct FakeStep {
  absl::Duration delay;
  std::vector<int32_t> token_ids;
};

// A request with resumed_tokens is played from behind as many tokens of its steps.

// Plays the steps with truthful cumulative usage, then the terminal record with `finish` (no tokens
// of its own).
FakeWorker::Script PlaySteps(std::vector<FakeStep> steps,
                             v1::FinishReason finish = v1::FINISH_REASON_LENGTH);
// Plays the steps and then ends with `status` and no terminal record.
FakeWorker::Script PlayStepsThenFail(std::vector<FakeStep> steps, grpc::Status status);
// Plays the steps and then says nothing until the call is cancelled.
FakeWorker::Script PlayStepsThenHang(std::vector<FakeStep> steps);

}  // namespace ultraspeed::testing
