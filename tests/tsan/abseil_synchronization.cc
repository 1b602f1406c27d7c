// Shows ThreadSanitizer what Abseil's synchronization orders: Debian's Abseil is not instrumented,
// so without this every state under an absl::Mutex looks unguarded. Linked into every program of
// the preset cpu-tsan and into no other.
//
// The functions below have the names of Abseil's own and come before those of its shared library,
// so not only our calls arrive here but also those of gRPC and of Abseil itself. Each calls the
// real one between the annotations that an instrumented Abseil would make: what a thread does in
// between is ignored, which is why conditions, which Abseil evaluates there, step out of it while
// they run. Not here, because nobody calls them: ReaderLockWhen, and Await under a reader's lock.
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/synchronization/internal/kernel_timeout.h"
#include "absl/synchronization/mutex.h"
#include "absl/synchronization/notification.h"
#include "tests/tsan/next_function.h"

using ultraspeed::tsan::AbseilSymbol;
using ultraspeed::tsan::Acquire;
using ultraspeed::tsan::Next;
using ultraspeed::tsan::Release;

namespace {

// Abseil's own function. `rest`: of its mangled name, behind the namespaces. `member`: "K" if it is
// const.
template <typename Function>
Function* Real(const std::string& rest, const std::string& member = "") {
  return Next<Function>(AbseilSymbol("_ZN" + member + "4absl", rest));
}

// A function of Abseil's that takes or releases `mutex`, while it runs.
struct Step {
  enum Kind { kLock, kUnlock } kind;
  void* mutex;
  unsigned flags;

  void Begin() const {
    if (kind == kLock) {
      __tsan_mutex_pre_lock(mutex, flags);
    } else {
      __tsan_mutex_pre_unlock(mutex, flags);
    }
  }
  void End(unsigned outcome = 0) const {
    if (kind == kLock) {
      __tsan_mutex_post_lock(mutex, flags | outcome, 0);
    } else {
      __tsan_mutex_post_unlock(mutex, flags);
    }
  }
};

thread_local const Step* current_step = nullptr;

void Run(const Step& step, auto&& real) {
  step.Begin();
  current_step = &step;
  real();
  current_step = nullptr;
  step.End();
}

bool Try(const Step& step, auto&& real) {
  step.Begin();
  const bool taken = real();
  step.End(taken ? 0 : __tsan_mutex_try_lock_failed);
  return taken;
}

// A function that takes `mutex` when a condition holds. Others evaluate the condition while this
// thread waits.
bool TakeWhen(absl::Mutex* mutex, const absl::Condition& condition, auto&& real) {
  Release(&condition);
  bool holds = false;
  Run({Step::kLock, mutex, 0}, [&] { holds = real(); });
  return holds;
}

// A function that releases `mutex`, held exclusively, waits and takes it again.
bool ReleaseAndTake(absl::Mutex* mutex, auto&& real) {
  mutex->AssertHeld();
  bool result = false;
  Run({Step::kUnlock, mutex, 0}, [&] { result = real(); });
  const Step take{Step::kLock, mutex, 0};
  take.Begin();
  take.End();
  return result;
}

}  // namespace

namespace absl {
ABSL_NAMESPACE_BEGIN

Mutex::~Mutex() {
  static auto* const real = Real<void(Mutex*)>("5MutexD1Ev");
  real(this);
  __tsan_mutex_destroy(this, __tsan_mutex_not_static);
}

void Mutex::Lock() {
  static auto* const real = Real<void(Mutex*)>("5Mutex4LockEv");
  Run({Step::kLock, this, 0}, [&] { real(this); });
}

void Mutex::Unlock() {
  static auto* const real = Real<void(Mutex*)>("5Mutex6UnlockEv");
  Run({Step::kUnlock, this, 0}, [&] { real(this); });
}

bool Mutex::TryLock() {
  static auto* const real = Real<bool(Mutex*)>("5Mutex7TryLockEv");
  return Try({Step::kLock, this, __tsan_mutex_try_lock}, [&] { return real(this); });
}

void Mutex::ReaderLock() {
  static auto* const real = Real<void(Mutex*)>("5Mutex10ReaderLockEv");
  Run({Step::kLock, this, __tsan_mutex_read_lock}, [&] { real(this); });
}

void Mutex::ReaderUnlock() {
  static auto* const real = Real<void(Mutex*)>("5Mutex12ReaderUnlockEv");
  Run({Step::kUnlock, this, __tsan_mutex_read_lock}, [&] { real(this); });
}

bool Mutex::ReaderTryLock() {
  static auto* const real = Real<bool(Mutex*)>("5Mutex13ReaderTryLockEv");
  return Try({Step::kLock, this, __tsan_mutex_try_read_lock}, [&] { return real(this); });
}

void Mutex::LockWhen(const Condition& condition) {
  static auto* const real =
      Real<void(Mutex*, const Condition&)>("5Mutex8LockWhenERKNS0_9ConditionE");
  TakeWhen(this, condition, [&] { return real(this, condition), true; });
}

// LockWhenWithTimeout as well.
bool Mutex::LockWhenWithDeadline(const Condition& condition, Time deadline) {
  static auto* const real = Real<bool(Mutex*, const Condition&, Time)>(
      "5Mutex20LockWhenWithDeadlineERKNS0_9ConditionENS0_4TimeE");
  return TakeWhen(this, condition, [&] { return real(this, condition, deadline); });
}

// All of Await, AwaitWithTimeout and AwaitWithDeadline, once their condition does not hold at once.
bool Mutex::AwaitCommon(const Condition& condition,
                        synchronization_internal::KernelTimeout timeout) {
  static auto* const real =
      Real<bool(Mutex*, const Condition&, synchronization_internal::KernelTimeout)>(
          "5Mutex11AwaitCommonERKNS0_9ConditionENS0_24synchronization_internal13KernelTimeoutE");
  return ReleaseAndTake(this, [&] { return real(this, condition, timeout); });
}

// All of Wait, WaitWithTimeout and WaitWithDeadline.
bool CondVar::WaitCommon(Mutex* mutex, synchronization_internal::KernelTimeout timeout) {
  static auto* const real = Real<bool(CondVar*, Mutex*, synchronization_internal::KernelTimeout)>(
      "7CondVar10WaitCommonEPNS0_5MutexENS0_24synchronization_internal13KernelTimeoutE");
  return ReleaseAndTake(mutex, [&] { return real(this, mutex, timeout); });
}

// Evaluated by whoever holds the mutex, be it on its way in or out: within a step the mutex is
// shown as taken for the time it runs.
bool Condition::Eval() const {
  static auto* const real = Real<bool(const Condition*)>("9Condition4EvalEv", "K");
  const Step* const step = std::exchange(current_step, nullptr);
  if (step == nullptr) return real(this);
  const Step lock{Step::kLock, step->mutex, step->flags};
  const Step unlock{Step::kUnlock, step->mutex, step->flags};
  step->End();
  Acquire(this);
  if (step->kind == Step::kUnlock) {
    lock.Begin();
    lock.End();
  }
  const bool holds = real(this);
  unlock.Begin();
  if (step->kind == Step::kLock) {
    unlock.End();
    lock.Begin();
  }
  current_step = step;
  return holds;
}

// A notification that was made before is seen without its mutex; HasBeenNotified reads the flag in
// instrumented code.
void Notification::Notify() {
  static auto* const real = Real<void(Notification*)>("12Notification6NotifyEv");
  Release(&notified_yet_);
  real(this);
}

void Notification::WaitForNotification() const {
  static auto* const real =
      Real<void(const Notification*)>("12Notification19WaitForNotificationEv", "K");
  real(this);
  Acquire(&notified_yet_);
}

bool Notification::WaitForNotificationWithTimeout(Duration timeout) const {
  static auto* const real = Real<bool(const Notification*, Duration)>(
      "12Notification30WaitForNotificationWithTimeoutENS0_8DurationE", "K");
  const bool notified = real(this, timeout);
  if (notified) Acquire(&notified_yet_);
  return notified;
}

bool Notification::WaitForNotificationWithDeadline(Time deadline) const {
  static auto* const real = Real<bool(const Notification*, Time)>(
      "12Notification31WaitForNotificationWithDeadlineENS0_4TimeE", "K");
  const bool notified = real(this, deadline);
  if (notified) Acquire(&notified_yet_);
  return notified;
}

// The counter of a status with a message: who lets go last deletes what all have read.
void Status::UnrefNonInlined(uintptr_t rep) {
  static auto* const real = Real<void(uintptr_t)>("6Status15UnrefNonInlinedEm");
  Release(reinterpret_cast<void*>(rep));
  Acquire(reinterpret_cast<void*>(rep));
  real(rep);
}

ABSL_NAMESPACE_END
}  // namespace absl
