// Shows ThreadSanitizer that a thread which hands operations to gRPC is done with them before
// another one hears of their end: Debian's gRPC is not instrumented, and what its threads tell each
// other with atomics is not seen. The edges belong to one tag, that is to one operation of one
// call, or to a call or server that ends; nothing else that gRPC orders is claimed here.
#include <grpc/grpc.h>
#include <grpcpp/server.h>
#include <grpcpp/support/server_callback.h>

#include <utility>

#include "absl/status/status.h"
#include "tests/tsan/next_function.h"

using ultraspeed::tsan::AbseilSymbol;
using ultraspeed::tsan::Acquire;
using ultraspeed::tsan::Next;
using ultraspeed::tsan::Release;

// Operations on their way.
extern "C" grpc_call_error grpc_call_start_batch(grpc_call* call, const grpc_op* ops,
                                                 size_t num_ops, void* tag, void* reserved) {
  static auto* const next = Next<decltype(grpc_call_start_batch)>("grpc_call_start_batch");
  Release(tag);
  return next(call, ops, num_ops, tag, reserved);
}

// gRPC's own thread that is done with them (grpc/src/core/lib/surface/completion_queue.h).
struct grpc_cq_completion;
void grpc_cq_end_op(grpc_completion_queue* queue, void* tag, absl::Status error,
                    void (*done)(void*, grpc_cq_completion*), void* done_argument,
                    grpc_cq_completion* storage, bool internal) {
  static auto* const next = Next<decltype(grpc_cq_end_op)>(
      AbseilSymbol("_Z14grpc_cq_end_opP21grpc_completion_queuePvN4absl",
                   "6StatusEPFvS1_P18grpc_cq_completionES1_S6_b"));
  Release(tag);
  next(queue, tag, std::move(error), done, done_argument, storage, internal);
}

// Their end: a reactor's callback (grpc::internal::CallbackWithSuccessTag::StaticRun), or an event
// of a completion queue.
void RunCallback(grpc_completion_queue_functor* tag, int ok) asm(
    "_ZN4grpc8internal22CallbackWithSuccessTag9StaticRunEP29grpc_completion_queue_functori");
void RunCallback(grpc_completion_queue_functor* tag, int ok) {
  static auto* const next = Next<decltype(RunCallback)>(
      "_ZN4grpc8internal22CallbackWithSuccessTag9StaticRunEP29grpc_completion_queue_functori");
  Acquire(tag);
  next(tag, ok);
}

extern "C" grpc_event grpc_completion_queue_next(grpc_completion_queue* queue,
                                                 gpr_timespec deadline, void* reserved) {
  static auto* const next =
      Next<decltype(grpc_completion_queue_next)>("grpc_completion_queue_next");
  const grpc_event event = next(queue, deadline, reserved);
  if (event.type == GRPC_OP_COMPLETE) Acquire(event.tag);
  return event;
}

extern "C" grpc_event grpc_completion_queue_pluck(grpc_completion_queue* queue, void* tag,
                                                  gpr_timespec deadline, void* reserved) {
  static auto* const next =
      Next<decltype(grpc_completion_queue_pluck)>("grpc_completion_queue_pluck");
  const grpc_event event = next(queue, tag, deadline, reserved);
  if (event.type == GRPC_OP_COMPLETE) Acquire(tag);
  return event;
}

// The last of those who count themselves out of a server's call; the count is kept in our
// instrumented code and in gRPC's.
void grpc::internal::ServerCallbackCall::ScheduleOnDone(bool inline_ondone) {
  static auto* const next = Next<void(ServerCallbackCall*, bool)>(
      "_ZN4grpc8internal18ServerCallbackCall14ScheduleOnDoneEb");
  Acquire(&callbacks_outstanding_);
  next(this, inline_ondone);
}

// Calls that have ended come before the end of their server's shutdown, which waits for them.
void grpc::Server::UnrefWithPossibleNotify() {
  static auto* const next = Next<void(Server*)>("_ZN4grpc6Server23UnrefWithPossibleNotifyEv");
  Release(this);
  next(this);
}
void grpc::Server::ShutdownInternal(gpr_timespec deadline) {
  static auto* const next =
      Next<void(Server*, gpr_timespec)>("_ZN4grpc6Server16ShutdownInternalE12gpr_timespec");
  next(this, deadline);
  Acquire(this);
}
