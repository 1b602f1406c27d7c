# The only three target functions of the project. LINKS mirrors the dependency arrows of docs/ARCHITECTURE.md: the link graph is the layering.
set(ULTRASPEED_WARNINGS -Wall -Wextra -Werror)

function(ultraspeed_configure target)
  target_include_directories(${target} PUBLIC ${PROJECT_SOURCE_DIR})
  target_compile_options(${target} PRIVATE $<$<COMPILE_LANGUAGE:CXX>:${ULTRASPEED_WARNINGS}>
    $<$<COMPILE_LANGUAGE:CUDA>:-Xcompiler=-Wall,-Wextra -Werror=all-warnings>)
endfunction()

# ultraspeed_library(NAME SOURCES a.cc ... LINKS t ...)
function(ultraspeed_library name)
  cmake_parse_arguments(ARG "" "" "SOURCES;LINKS" ${ARGN})
  add_library(${name} STATIC ${ARG_SOURCES})
  ultraspeed_configure(${name})
  target_link_libraries(${name} PUBLIC ${ARG_LINKS})
endfunction()

add_custom_target(programs)  # every program, no test

# ultraspeed_program(NAME SOURCES main.cc ... LINKS t ...)
function(ultraspeed_program name)
  cmake_parse_arguments(ARG "" "" "SOURCES;LINKS" ${ARGN})
  add_executable(${name} ${ARG_SOURCES})
  add_dependencies(programs ${name})
  ultraspeed_configure(${name})
  target_link_libraries(${name} PRIVATE ${ARG_LINKS})
endfunction()

add_custom_target(gpu_tests)        # every test with the label gpu
add_custom_target(multi_gpu_tests)  # likewise multi-gpu: at least two GPUs

# ultraspeed_test(NAME LABEL unit|model|cluster|tidy|gpu|multi-gpu SOURCES a_test.cc ... LINKS t ...). Tests run from the repository root.
function(ultraspeed_test name)
  cmake_parse_arguments(ARG "" "LABEL" "SOURCES;LINKS" ${ARGN})
  add_executable(${name} ${ARG_SOURCES})
  ultraspeed_configure(${name})
  target_link_libraries(${name} PRIVATE ${ARG_LINKS} GTest::gtest GTest::gmock GTest::gtest_main)
  add_test(NAME ${name} COMMAND ${name} WORKING_DIRECTORY ${PROJECT_SOURCE_DIR})
  set_tests_properties(${name} PROPERTIES LABELS ${ARG_LABEL} TIMEOUT 300)
  if(ARG_LABEL STREQUAL gpu)
    add_dependencies(gpu_tests ${name})
  elseif(ARG_LABEL STREQUAL multi-gpu)
    add_dependencies(multi_gpu_tests ${name})
  endif()
endfunction()
