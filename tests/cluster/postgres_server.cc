#include "tests/cluster/postgres_server.h"

#include <libpq-fe.h>
#include <pwd.h>
#include <signal.h>
#include <unistd.h>

#include <filesystem>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "tests/cluster/eventually.h"

namespace ultraspeed::testing {
namespace {

namespace fs = std::filesystem;

constexpr absl::Duration kStartMax = absl::Minutes(1);

// Debian and Ubuntu keep the server's programs here, one folder per version.
std::string FindBinFolder() {
  std::error_code ignored;
  for (const auto& entry : fs::directory_iterator("/usr/lib/postgresql", ignored)) {
    if (fs::exists(entry.path() / "bin/initdb")) return (entry.path() / "bin").string();
  }
  return "";
}

const passwd* ServerUser() {
  const passwd* const postgres = getpwnam("postgres");
  return postgres != nullptr ? postgres : getpwnam("nobody");
}

// `command` as a user that PostgreSQL accepts, ended with this process even if that crashes.
// setpriv replaces itself, so the pid is the server's.
std::vector<std::string> Unprivileged(const std::vector<std::string>& command) {
  std::vector<std::string> words = {"/usr/bin/setpriv", "--pdeathsig=INT"};
  if (geteuid() == 0) {
    const passwd* const user = ServerUser();
    words.insert(words.end(), {absl::StrCat("--reuid=", user->pw_uid),
                               absl::StrCat("--regid=", user->pw_gid), "--clear-groups"});
  }
  words.push_back("--");
  words.insert(words.end(), command.begin(), command.end());
  return words;
}

// Empty, or the error of the connection or the statement.
std::string Execute(const std::string& url, const std::string& statement) {
  PGconn* const connection = PQconnectdb(url.c_str());
  PGresult* const result = PQexec(connection, statement.c_str());
  const ExecStatusType status = PQresultStatus(result);
  const bool ok = status == PGRES_COMMAND_OK || status == PGRES_TUPLES_OK;
  std::string error = ok ? "" : PQerrorMessage(connection);
  PQclear(result);
  PQfinish(connection);
  return error;
}

}  // namespace

PostgresServer::PostgresServer() : bin_folder_(FindBinFolder()) {
  if (bin_folder_.empty()) {
    error_ = "no PostgreSQL server below /usr/lib/postgresql; run scripts/setup.sh";
    return;
  }
  if (geteuid() == 0) {
    const passwd* const user = ServerUser();
    if (chown(folder_.c_str(), user->pw_uid, user->pw_gid) != 0) {
      error_ = "cannot give the data folder to the server's user";
      return;
    }
  }
  Process initdb(
      folder_, "initdb",
      Unprivileged({bin_folder_ + "/initdb", "--pgdata=" + folder_ + "/data", "--auth=trust",
                    "--username=postgres", "--encoding=UTF8", "--no-locale", "--no-sync"}));
  if (initdb.Wait(kStartMax) != 0) {
    error_ = absl::StrCat("initdb failed: ", initdb.Log());
    return;
  }
  Start();
}

PostgresServer::~PostgresServer() { Stop(); }

bool PostgresServer::Start() {
  server_ = std::make_unique<Process>(
      folder_, "postgres",
      Unprivileged({bin_folder_ + "/postgres", "-D", folder_ + "/data", "-k", folder_, "-c",
                    "listen_addresses=", "-c", "fsync=off", "-c", "shared_buffers=16MB"}));
  const bool is_up = Eventually(
      [&] { return server_->HasEnded() || Execute(Url("postgres"), "SELECT 1").empty(); },
      kStartMax);
  error_ = is_up && !server_->HasEnded()
               ? ""
               : absl::StrCat("the server did not start: ", server_->Log());
  return error_.empty();
}

void PostgresServer::Stop() {
  if (server_ == nullptr) return;
  server_->Signal(SIGINT);  // "fast": break the connections, shut down in order
  if (server_->Wait(absl::Seconds(20)) == -1) server_->Signal(SIGQUIT);
  server_.reset();
}

std::string PostgresServer::NewDatabase() {
  const std::string name = absl::StrCat("test_", ++num_databases_);
  error_ = Execute(Url("postgres"), "CREATE DATABASE " + name);
  return Url(name);
}

std::string PostgresServer::Url(const std::string& database) const {
  return absl::StrCat("postgresql:///", database, "?user=postgres&host=", folder_);
}

}  // namespace ultraspeed::testing
